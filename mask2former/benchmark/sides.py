"""What the two sides have in common: one model, one workload, calls under a stopwatch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from mask2former.benchmark.stopwatch import Stopwatch
from mask2former.benchmark.workload import DTYPES, Workload
from mask2former.config import on_available_device
from mask2former.maskformer_model import MaskFormer
from mask2former.modeling.cuda_graphs import RECORDED_AT
from mask2former.modeling.transformers_config import to_transformers_config
from mask2former.modeling.transformers_weights import to_transformers

__all__ = ["Side", "autocast", "checked", "padded", "prepared_config", "transformers_model"]


class Side(ABC):
    """One implementation with the pictures of a workload at hand.

    Attributes:
        model: what is measured.
        device: where it is.
        stopwatch: adds up the seconds of calls.
    """

    model: nn.Module
    device: torch.device
    stopwatch: Stopwatch

    @abstractmethod
    def run(self) -> None:
        """One call: all pictures segmented, or one training step."""

    def warm_up(self) -> None:
        """What only first calls do is done, the recording of a GPU's network too."""
        with self.stopwatch.as_a_whole():
            for _ in range(RECORDED_AT if self.device.type == "cuda" else 0):
                self.run()
        self.run()

    @abstractmethod
    def outputs(self) -> dict[str, Tensor]:
        """What both sides must agree on: logits of the last layer, or losses."""

    @abstractmethod
    def flops(self) -> int:
        """Multiply-adds of the network for all pictures, forward."""

    def _stopwatch(self, workload: Workload) -> Stopwatch:
        if workload.processor_time and self.device.type != "cpu":
            raise ValueError("--processor-time does not see what a GPU does: leave it out, or choose --device cpu")
        return Stopwatch(self.device, processor_time=workload.processor_time)

    def facts(self) -> dict[str, Any]:
        """What the other side takes over: `weights`, our state dict, and the like."""
        return {"weights": self.model.state_dict()}


def prepared_config(cfg: CfgNode, workload: Workload) -> CfgNode:
    """The config with the precision of the workload, for pictures that keep their size, on a device that is there."""
    cfg = on_available_device(cfg).clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.MODEL.MASK_FORMER.TEST.PRECISION = workload.precision  # training takes it from `autocast`
    cfg.freeze()
    return cfg


def checked(model: nn.Module) -> MaskFormer:
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE={type(model).__name__!r} predicts no masks of queries: only MaskFormer has the "
            "stages that are measured"
        )
    return model


def transformers_model(cfg: CfgNode, weights: Mapping[str, Tensor]) -> Any:
    """transformers' model of the same architecture with the same weights, in evaluation, on MODEL.DEVICE.

    Args:
        weights: our state dict.

    Raises:
        ValueError: transformers has no such architecture; the message names the config key.
        ModuleNotFoundError: transformers is not installed (extra "hf").
    """
    theirs = to_transformers_config(cfg)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # As from a file, whose names its loader translates to those of its modules.
    model_class: Any = transformers.Mask2FormerForUniversalSegmentation
    model, report = model_class.from_pretrained(
        None,
        config=transformers.Mask2FormerConfig.from_dict(theirs),
        state_dict=to_transformers(weights),
        output_loading_info=True,
    )
    different = {kind: sorted(names) for kind, names in report.items() if names}
    if different:
        raise ValueError(f"transformers' model does not take our weights: {different}")
    return model.eval().to(cfg.MODEL.DEVICE)


def padded(images: Tensor) -> Tensor:
    """(..., H, W) with zeros at the bottom and the right, up to multiples of 32."""
    height, width = (-side % 32 for side in images.shape[-2:])
    return torch.nn.functional.pad(images, (0, width, 0, height))


def autocast(device: torch.device, workload: Workload) -> torch.autocast:
    """Computes in the precision of the workload, as our trainer does, and as transformers' does."""
    return torch.autocast(device.type, DTYPES[workload.precision], enabled=workload.precision != "fp32")
