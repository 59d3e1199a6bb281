"""Reading and writing the files that hold weights, whatever wrote them.

A reader returns plain CPU tensors under the names in the file; `checkpoint.py` decides what they mean for a model.
"""

from __future__ import annotations

import codecs
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mask2former.files import write_atomically

__all__ = ["WeightFile", "export_weights", "read_weight_file", "write_atomically"]

#: Entries under which known writers put the tensors: Detectron2, PyTorch Lightning and others, pycls.
_TENSOR_ENTRIES = ("model", "state_dict", "model_state")


#: What readers raise for files that are cut off or something else: unpickling foreign bytes may end in any of these.
_READ_ERRORS = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)


@dataclass
class WeightFile:
    """What a file holds.

    Attributes:
        tensors: name -> CPU tensor, any dtype.
        by_suffix: the names lack a prefix that the model has ("res2.0.conv1.weight" for "backbone.res2..."): files of
            pre-trained backbones, which Detectron2 marks with `matching_heuristics`.
        is_caffe2: Detectron1's names, which Detectron2 translates.
        other: everything else in the file, e.g. the state of the trainer.
    """

    tensors: dict[str, Tensor]
    by_suffix: bool = False
    is_caffe2: bool = False
    other: dict[str, Any] = field(default_factory=dict)


def read_weight_file(path: str | Path) -> WeightFile:
    """Read .safetensors, .pkl (Detectron2's and Caffe2's pickles) or anything that `torch.save` wrote.

    Pickles are read without running what they contain: only tensors, arrays and plain containers are accepted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, is no checkpoint, or contains objects that are refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {str(path)!r} does not exist (MODEL.WEIGHTS, or last_checkpoint in OUTPUT_DIR)"
        )
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = _read_pickle(path) if path.suffix == ".pkl" else _read_torch(path)
    except _READ_ERRORS as error:
        raise ValueError(
            f"checkpoint {str(path)!r} ({path.stat().st_size} bytes) cannot be read: it is cut off, is no checkpoint, "
            "or contains more than tensors and plain values. Copy it again or choose an earlier one."
            f"{_cause(error)}"
        ) from error
    return _interpret(content, path)


def export_weights(state_dict: Mapping[str, Tensor], path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a state dict as .safetensors, floating tensors as `dtype`: half the size, and no code inside."""
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
        for name, tensor in state_dict.items()
    }
    content = save(tensors, metadata={"format": "pt"})
    write_atomically(path, lambda file: file.write(content))


def _read_safetensors(path: Path) -> WeightFile:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return WeightFile(load_file(path), by_suffix=metadata.get("matching_heuristics") == "True")


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(_numpy_globals()):  # torch on its own refuses arrays
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_globals() -> list[Any]:
    """What a pickled array or NumPy scalar asks for, under the module names of NumPy 1 and 2."""
    functions = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    named = [
        (function, f"numpy.{module}.multiarray.{name}")
        for name, function in functions.items()
        for module in ("core", "_core")
    ]
    dtypes = {type(np.dtype(character)) for character in np.typecodes["All"] if character not in "OSUVMm"}
    return [*named, *dtypes, np.ndarray, np.dtype, (codecs.encode, "_codecs.encode")]


def _cause(error: Exception) -> str:
    """What the reader says, without torch's advice to run the file's code nevertheless."""
    refused = re.search(r"nsupported (?:\w+: )?GLOBAL ([\w.]+)", str(error))
    if refused:
        return f" (it asks for {refused[1]}, which is neither tensor nor plain value)"
    if isinstance(error, pickle.UnpicklingError):
        return "" if "weights_only" in str(error) else f" ({error})"
    return f" ({type(error).__name__}: {error})"


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        # Published files were pickled by Python 2 programs as well: latin1 is what NumPy's arrays need.
        return _TensorUnpickler(file, encoding="latin1").load()


def _interpret(content: Any, path: Path) -> WeightFile:
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint {str(path)!r} holds a {type(content).__name__}, not named tensors")
    other = dict(content)
    # Detectron2's rule: a pickle that does not name its author is one of Caffe2.
    is_caffe2 = path.suffix == ".pkl" and not {"model", "__author__"} <= other.keys()
    if is_caffe2:
        blobs = other.get("blobs", other)
        named = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
        other = {}
    else:
        entry = next((name for name in _TENSOR_ENTRIES if isinstance(other.get(name), Mapping)), None)
        named = dict(other.pop(entry)) if entry else other
        if entry is None:
            other = {}
    tensors = {name: _as_tensor(value) for name, value in named.items() if isinstance(value, Tensor | np.ndarray)}
    if not tensors:
        raise ValueError(f"checkpoint {str(path)!r} holds no tensors; its entries are {sorted(map(str, content))[:10]}")
    by_suffix = is_caffe2 or bool(other.pop("matching_heuristics", False))
    return WeightFile(tensors, by_suffix=by_suffix, is_caffe2=is_caffe2, other=other)


def _as_tensor(value: Tensor | np.ndarray) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays, torch tensors and plain containers; refuses everything else by name."""

    _ALLOWED = frozenset(
        {
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage_from_bytes
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither tensor nor plain value")


def _storage_from_bytes(content: bytes) -> Any:
    # torch's own version would unpickle the inner bytes without restrictions.
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
