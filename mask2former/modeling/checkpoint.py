"""Loading weights into a model, and checkpoints that survive a kill.

What a file says about a model is decided by the content of its names, never by version numbers: files saved without
version metadata would otherwise be renamed twice and leave the pixel decoder at its random start.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.utils import comm
from torch import Tensor, nn

from mask2former.modeling.weight_files import WeightFile, export_weights, read_weight_file, write_atomically

__all__ = ["LoadReport", "MaskFormerCheckpointer", "current_names", "export_weights", "load_weights"]

#: The class head, and what is sized like it: the only tensors that may start afresh when a model gets other classes.
_CLASS_HEAD = ("sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias")
#: Recomputed from the config by every model, so neither missed nor used. The class weights of the loss belong here: a
#: file must not override MODEL.MASK_FORMER.NO_OBJECT_WEIGHT.
_DERIVED = ("criterion.empty_weight", "pixel_mean", "pixel_std")
_DERIVED_ENDINGS = (".num_batches_tracked", ".relative_position_index", ".attn_mask")


@dataclass
class LoadReport:
    """What happened to the tensors of a file and of a model (names in the model's terms)."""

    loaded: list[str] = field(default_factory=list)
    renamed: int = 0
    fresh: list[str] = field(default_factory=list)  # in the model only
    reset: list[str] = field(default_factory=list)  # class head of another size
    unused: list[str] = field(default_factory=list)  # in the file only

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded" + (f", {self.renamed} under new names" * bool(self.renamed))]
        for names, meaning in (
            (self.fresh, "not in the file, start as initialized"),
            (self.reset, "of another number of classes, start as initialized"),
            (self.unused, "in the file, not used"),
        ):
            if names:
                lines.append(f"{len(names)} {meaning}: {_grouped(names)}")
        return "; ".join(lines)


class MaskFormerCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with three differences.

    Weights of another architecture are an error instead of a warning, old names are recognized by content, and files
    are written whole or not at all. Reads what `read_weight_file` reads, from any path or URL that Detectron2 knows.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_head_mismatch: bool = False,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._allow_head_mismatch = allow_head_mismatch
        self.logger = logging.getLogger(__name__)

    def load(self, path: str, checkpointables: Iterable[str] | None = None) -> dict[str, Any]:
        """Load weights and, for the named `checkpointables` (None: all), their state.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError, ValueError: see `read_weight_file` and `load_weights`.
        """
        if not path:
            self.logger.info("No weights to load (MODEL.WEIGHTS is empty): the model starts as initialized")
            return {}
        weight_file = self._read_on_every_rank(path)
        report = load_weights(self.model, weight_file, source=path, allow_head_mismatch=self._allow_head_mismatch)
        self.logger.info(f"Weights from {path}: {report}")
        for name in self.checkpointables if checkpointables is None else checkpointables:
            if name in weight_file.other:
                self.checkpointables[name].load_state_dict(weight_file.other.pop(name))
        return weight_file.other

    def _read_on_every_rank(self, path: str) -> WeightFile:
        """Read the file here, or take it from rank 0 where a machine does not have it (checkpoints on local disks)."""
        try:
            local_path = path if os.path.isfile(path) else self.path_manager.get_local_path(path)
        except OSError as error:  # an address that does not answer
            raise FileNotFoundError(f"checkpoint {path!r} (MODEL.WEIGHTS) cannot be fetched: {error}") from error
        if all(comm.all_gather(os.path.isfile(local_path))):
            return read_weight_file(local_path)
        content: list[Any] = [read_weight_file(local_path) if comm.is_main_process() else None]
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

    A part of the model (backbone, pixel decoder, transformer decoder) that the file lacks altogether keeps its initial
    values; a part that it holds must fit completely. Backbone files match by suffix and skip what does not fit.

    Raises:
        ValueError: nothing fits, a part is of another architecture, or the class head has another size and
            `allow_head_mismatch` is off.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not _is_derived(name)}
    if weight_file.by_suffix:
        chosen, report = _match_by_suffix(wanted, weight_file, source)
    else:
        chosen, report = _match_by_name(wanted, weight_file, source, allow_head_mismatch)
    if not chosen:
        raise ValueError(
            f"checkpoint {source!r} fits this model nowhere: it holds {_grouped(weight_file.tensors)}, "
            f"the model {_grouped(wanted)}"
        )
    # A plain dict on purpose: without version metadata no module "upgrades" what has the right names already.
    model.load_state_dict(chosen, strict=False)
    report.loaded = list(chosen)
    return report


def current_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Published names of all times under the names of this model, and how many changed.

    Queries were called `static_query`, and the pixel decoder once lay directly in the head. Names that are current
    already stay, so the function may be applied any number of times.
    """
    wrapped = all(name.startswith("module.") for name in tensors)
    renamed, num_changed = {}, 0
    for name, tensor in tensors.items():
        unwrapped = name.removeprefix("module.") if wrapped else name
        current = unwrapped.replace(".static_query.", ".query_feat.")
        inner = current.removeprefix("sem_seg_head.")
        if inner != current and not inner.startswith(("pixel_decoder.", "predictor.")):
            current = f"sem_seg_head.pixel_decoder.{inner}"
        num_changed += current != unwrapped
        renamed[current] = tensor
    return renamed, num_changed


def _match_by_name(
    wanted: Mapping[str, tuple[int, ...]], weight_file: WeightFile, source: str, allow_head_mismatch: bool
) -> tuple[dict[str, Tensor], LoadReport]:
    tensors, num_renamed = current_names(weight_file.tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_derived(name)}
    report = LoadReport(renamed=num_renamed)
    report.reset = _class_heads_of_other_size(wanted, tensors, source, allow_head_mismatch)
    chosen = {
        name: tensor
        for name, tensor in tensors.items()
        if name in wanted and wanted[name] == tuple(tensor.shape)  # the rest is sorted out below
    }
    parts_of_file, parts_of_model = ({_part(name) for name in names} for names in (tensors, wanted))
    report.fresh = [name for name in wanted if _part(name) not in parts_of_file]
    report.unused = [name for name in tensors if _part(name) not in parts_of_model]
    accounted = {*chosen, *report.fresh, *report.unused, *report.reset}
    missing = [name for name in wanted if name not in accounted and name not in tensors]
    extra = [name for name in tensors if name not in accounted and name not in wanted]
    misfits = [
        f"{name} {tuple(tensors[name].shape)} instead of {wanted[name]}"
        for name in tensors
        if name not in accounted and name in wanted
    ]
    if missing or extra or misfits:
        problems = [
            f"{len(names)} {what}, e.g. {', '.join(names[:3])}"
            for names, what in (
                (misfits, "tensors of another shape"),
                (missing, "missing"),
                (extra, "that the model does not have"),
            )
            if names
        ]
        raise ValueError(
            f"checkpoint {source!r} is of another architecture than the model of this config: {'; '.join(problems)}. "
            "Use the config that it was trained with."
        )
    return chosen, report


def _class_heads_of_other_size(
    wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: str, allowed: bool
) -> list[str]:
    names = [
        name
        for name in _CLASS_HEAD
        if name in wanted
        and name in tensors
        # Another width is another architecture; only the number of rows follows the classes.
        and tuple(tensors[name].shape) != wanted[name]
        and tuple(tensors[name].shape[1:]) == wanted[name][1:]
    ]
    if names and not allowed:
        num_theirs, num_ours = len(tensors[names[0]]) - 1, wanted[names[0]][0] - 1
        raise ValueError(
            f"checkpoint {source!r} has a class head for {num_theirs} classes, the model one for {num_ours}: set "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES to {num_theirs}, or MODEL.WEIGHTS_ALLOW_HEAD_MISMATCH to True to keep "
            f"everything else and start the class head afresh"
        )
    return names


def _match_by_suffix(
    wanted: Mapping[str, tuple[int, ...]], weight_file: WeightFile, source: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """Detectron2's rule for backbone files: the longest name in the file that ends the model's, if its shape fits."""
    tensors = weight_file.tensors
    if weight_file.is_caffe2:
        tensors, _ = convert_c2_detectron_names(tensors)
    chosen: dict[str, Tensor] = {}
    taken: dict[str, str] = {}
    for name, shape in wanted.items():
        parts = name.split(".")
        candidates = (".".join(parts[start:]) for start in range(len(parts)))
        match = next((candidate for candidate in candidates if candidate in tensors), None)
        if match is None or tuple(tensors[match].shape) != shape:
            continue
        if match in taken:
            raise ValueError(f"{match!r} of checkpoint {source!r} fits both {taken[match]!r} and {name!r} of the model")
        taken[match], chosen[name] = name, tensors[match]
    report = LoadReport(
        renamed=sum(match != name for match, name in taken.items()),
        fresh=[name for name in wanted if name not in chosen],
        unused=[name for name in tensors if name not in taken],
    )
    return chosen, report


def _is_derived(name: str) -> bool:
    return name in _DERIVED or name.endswith(_DERIVED_ENDINGS)


def _part(name: str) -> str:
    """The box of the model that a tensor belongs to: "backbone", "sem_seg_head.pixel_decoder", ..."""
    return ".".join(name.split(".")[: 2 if name.startswith("sem_seg_head.") else 1])


def _grouped(names: Iterable[str]) -> str:
    """`backbone (3), sem_seg_head.predictor (12)`; at most eight groups are named."""
    counts = Counter(_part(name) for name in names)
    shown = ", ".join(f"{part} ({count})" for part, count in list(counts.items())[:8])
    return shown + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")
