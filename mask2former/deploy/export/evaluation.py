"""The metrics of an exported model on a data set, as those of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from mask2former.deploy.export.exported import ExportedModel, read_manifest
from mask2former.deploy.export.formats import check_format
from mask2former.engine.trainer import Trainer
from mask2former.modeling.postprocessing import ResultSettings

__all__ = ["evaluate_exported"]


def evaluate_exported(cfg: CfgNode, folder: Path) -> dict[str, Any]:
    """Evaluates on DATASETS.TEST the tasks of the model: all that the config has on for a raw one, else its own.

    Returns:
        task -> metric -> value; see `Trainer.test`, which also prints and writes them.

    Raises:
        ValueError: the folder is no exported model.
    """
    manifest = read_manifest(folder)
    switches = {"panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON", "semantic": "SEMANTIC_ON"}
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.MASK_FORMER.TEST
    for task, switch in switches.items():
        node[switch] = bool(node[switch]) and task in manifest["tasks"]
    cfg.freeze()
    settings = ResultSettings(
        semantic_output="scores" if node.SEMANTIC_ON else None,
        instance_output="masks" if node.INSTANCE_ON else None,
        panoptic_on=node.PANOPTIC_ON,
        memory_budget=manifest["preparation"]["memory_budget"],
        **manifest["settings"],
    )
    run = check_format(manifest["format"]).open(folder / manifest["model_file"], "cpu")
    model = ExportedModel(run, manifest, settings, "cpu")
    results: dict[str, Any] = Trainer.test(cfg, _InChannelOrder(model, is_bgr=cfg.INPUT.FORMAT == "BGR").eval())
    return results


class _InChannelOrder(nn.Module):
    """Takes pictures as the data set's mapper gives them."""

    def __init__(self, model: ExportedModel, *, is_bgr: bool) -> None:
        super().__init__()
        self.model = model
        self.is_bgr = is_bgr

    @torch.inference_mode()
    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self.model(
            [
                sample | {"image": sample["image"].flip(0) if self.is_bgr else sample["image"]}
                for sample in batched_inputs
            ]
        )
        return results
