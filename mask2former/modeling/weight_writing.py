"""Writing weights as the files that programs of this field read. Half of a file is never left behind."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mask2former.files import write_atomically
from mask2former.modeling.load_report import examples
from mask2former.modeling.weight_files import carries_hash

__all__ = ["check_weights_path", "write_pickle", "write_weights"]

_SUFFIXES = (".pkl", ".pth", ".safetensors")
_AUTHOR = "mask2former"


def check_weights_path(path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless `write_weights` can write tensors of a type (None: of any) under this name."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{str(path)!r} must end in one of {', '.join(_SUFFIXES)}")
    if carries_hash(path):
        raise ValueError(f"{str(path)!r} is a name for a file of a certain hash, which the result will not have")
    if path.suffix == ".pkl" and dtype is torch.bfloat16:
        raise ValueError(f"{str(path)!r}: NumPy's arrays, which .pkl files hold, know no bfloat16")


def write_weights(tensors: Mapping[str, Tensor], path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a state dict as .pkl (Detectron2's form), .pth or .safetensors, in a folder that is made where it is not.

    Args:
        tensors: under the names of our models, or of a backbone alone.
        path: its suffix decides.
        dtype: of floating tensors; None keeps their types.

    Raises:
        ValueError: see `check_weights_path`; or a number is too large for `dtype`.
    """
    path = Path(path)
    check_weights_path(path, dtype)
    converted = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).detach().cpu()
        for name, tensor in tensors.items()
    }
    too_large = [name for name, tensor in converted.items() if _has_overflowed(tensors[name], tensor)]
    if too_large:
        raise ValueError(f"{str(path)!r}: {examples(too_large)} hold numbers too large for {dtype}: choose bfloat16")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        # A copy each: safetensors refuses tensors that share memory.
        separate = {name: tensor.contiguous().clone() for name, tensor in converted.items()}
        content = save(separate, metadata={"format": "pt"})
        write_atomically(path, lambda file: file.write(content))
    elif path.suffix == ".pkl":
        write_pickle(_labeled(_as_arrays(converted, path)), path)
    else:
        write_atomically(path, lambda file: torch.save(_labeled(converted), file))


def write_pickle(content: dict[str, Any], path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: pickle.dump(content, file))


def _has_overflowed(before: Tensor, after: Tensor) -> bool:
    return after.dtype != before.dtype and not bool(torch.isfinite(after).all()) and bool(torch.isfinite(before).all())


def _as_arrays(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    unknown = [name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16]
    if unknown:
        raise ValueError(
            f"{str(path)!r}: NumPy's arrays, which .pkl files hold, know no bfloat16, the type of {examples(unknown)}: "
            "choose float32 or float16"
        )
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _labeled(named: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint as Detectron2 and the original Mask2Former expect it."""
    content: dict[str, Any] = {"model": OrderedDict(named), "__author__": _AUTHOR}
    if any(name.startswith("sem_seg_head.") for name in named):
        # The original takes names without module versions for old ones, and renames the pixel decoder a second time.
        content["model"]._metadata = {name: {"version": 2} for name in ("sem_seg_head", "sem_seg_head.predictor")}
    elif not any(name.startswith("backbone.") for name in named):
        content["matching_heuristics"] = True  # tells Detectron2 that the beginnings of names are missing
    return content
