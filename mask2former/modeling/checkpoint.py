"""Loading weights into a model, and checkpoints that survive a kill."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from mask2former.files import write_atomically
from mask2former.modeling.load_report import LoadReport, examples, grouped
from mask2former.modeling.weight_files import WeightFile
from mask2former.modeling.weight_fitting import fit_weights
from mask2former.modeling.weight_names import current_names
from mask2former.modeling.weight_sources import TRANSFORMERS_PREFIX, is_transformers_path, read_weights

__all__ = ["LoadReport", "MaskFormerCheckpointer", "current_names", "load_weights"]

#: What a file may say about its model and this model do otherwise: what loading fits or checks on its own, what a video
#: model calls by another name, and a key that `build_resnet_backbone` does not read.
_FREE_SETTINGS = (
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    "MODEL.SWIN.WINDOW_SIZE",
    "MODEL.META_ARCHITECTURE",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
    "MODEL.RESNETS.STEM_TYPE",
)


class MaskFormerCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with three differences.

    Weights of another architecture are an error instead of a warning, names of all kinds are recognized by content, and
    files are written whole or not at all. Reads what `read_weights` reads, from any path or URL that Detectron2 knows.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_head_mismatch: bool = False,
        must_be_complete: bool = False,
        cfg: CfgNode | None = None,
        **checkpointables: Any,
    ) -> None:
        """Args:
        model: whose weights are read and written.
        save_dir: where checkpoints are written, and the last one is looked for.
        save_to_disk: None: on rank 0 only.
        allow_head_mismatch: let a class head of another number of classes start afresh.
        must_be_complete: warn of what keeps its random start, because the model is not going to learn.
        cfg: of the model, to be compared with what a transformers folder says about its own.
        checkpointables: what else is saved and restored, by its name in the file.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._allow_head_mismatch = allow_head_mismatch
        self._must_be_complete = must_be_complete
        self._cfg = cfg
        self.logger = logging.getLogger(__name__)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, model: nn.Module, *, starts_training: bool = False, **checkpointables: Any
    ) -> MaskFormerCheckpointer:
        """The checkpointer of a run.

        Args:
            cfg: OUTPUT_DIR and MODEL.WEIGHTS_ALLOW_HEAD_MISMATCH are read here, the rest is for comparison.
            model: of this config.
            starts_training: weights are a beginning, not the model to evaluate. Video models may then have other
                classes than their weights: their recipes start from models of images, and name no key to allow it.
            checkpointables: see the constructor.
        """
        is_video = cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
        return cls(
            model,
            cfg.OUTPUT_DIR,
            allow_head_mismatch=cfg.MODEL.WEIGHTS_ALLOW_HEAD_MISMATCH or (starts_training and is_video),
            must_be_complete=not starts_training,
            cfg=cfg,
            **checkpointables,
        )

    def load(self, path: str, checkpointables: Iterable[str] | None = None) -> dict[str, Any]:
        """Load weights and, for the named `checkpointables` (None: all), their state.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError, ValueError: see `read_weights` and `load_weights`.
        """
        if not path:
            self.logger.info("No weights to load (MODEL.WEIGHTS is empty): the model starts as initialized")
            return {}
        weight_file = self._read_on_every_rank(path)
        if self._cfg is not None:
            _check_settings(self._cfg, weight_file.settings, path)
        report = load_weights(self.model, weight_file, source=path, allow_head_mismatch=self._allow_head_mismatch)
        self.logger.info(f"Weights from {path}:\n{report}")
        if self._must_be_complete and (untrained := report.fresh + report.reset):
            self.logger.warning(
                f"{path} is not the whole model: what stays random, and with it all results, is {grouped(untrained)}"
            )
        for name in self.checkpointables if checkpointables is None else checkpointables:
            if name in weight_file.other:
                self.checkpointables[name].load_state_dict(weight_file.other.pop(name))
        return weight_file.other

    def _read_on_every_rank(self, path: str) -> WeightFile:
        """Read the file here, or take it from rank 0 where a machine does not have it (checkpoints on local disks)."""
        local_path = path
        if not (os.path.exists(path) or is_transformers_path(path)):
            try:
                local_path = self.path_manager.get_local_path(path)
            except OSError as error:  # an address that does not answer
                raise FileNotFoundError(f"checkpoint {path!r} (MODEL.WEIGHTS) cannot be fetched: {error}") from error
        if all(comm.all_gather(os.path.exists(local_path.removeprefix(TRANSFORMERS_PREFIX)))):
            return read_weights(local_path)
        content: list[Any] = [read_weights(local_path) if comm.is_main_process() else None]
        if comm.get_world_size() > 1:
            torch.distributed.broadcast_object_list(content, src=0)
        weight_file: WeightFile = content[0]
        return weight_file

    def save(self, name: str, **extra: Any) -> None:
        """Write `<save_dir>/<name>.pth` and only then name it as the last checkpoint (rank 0 only)."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: holder.state_dict() for key, holder in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **extra}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        write_atomically(path, lambda file: torch.save(data, file))
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, lambda file: file.write(last_filename_basename.encode()))


def load_weights(
    model: nn.Module, weight_file: WeightFile, *, source: str = "", allow_head_mismatch: bool = False
) -> LoadReport:
    """Copy the tensors of a file into a model (floating types are converted, e.g. from fp16).

    Raises:
        ValueError: see `fit_weights`; or a tensor is not finite.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    chosen, report = fit_weights(shapes, weight_file.tensors, source=source, allow_head_mismatch=allow_head_mismatch)
    _refuse_infinite(chosen, source)
    # A plain dict on purpose: without version metadata no module "upgrades" what has the right names already.
    model.load_state_dict(chosen, strict=False)
    return report


def _refuse_infinite(chosen: Mapping[str, Tensor], source: str) -> None:
    names = [name for name, tensor in chosen.items() if not torch.isfinite(tensor).all()]
    if names:
        raise ValueError(
            f"checkpoint {source!r} has NaN or infinity in {len(names)} tensors, e.g. {examples(names)}: the run that "
            "wrote it had diverged, or a conversion has overflowed. Choose an earlier checkpoint or the original"
        )


def _check_settings(cfg: CfgNode, settings: Mapping[str, Any], source: str) -> None:
    """Compare what a file says about its model with a config: not every difference shows in names and shapes."""
    differences = []
    for key, theirs in settings.items():
        ours = reduce(getattr, key.split("."), cfg)
        if key not in _FREE_SETTINGS and _plain(ours) != _plain(theirs):
            differences.append(f"{key} is {ours!r} here, the checkpoint was made with {theirs!r}")
    if differences:
        raise ValueError(f"checkpoint {source!r} is of another model: {'; '.join(differences)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
