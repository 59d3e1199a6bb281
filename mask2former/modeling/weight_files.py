"""Reading and writing the files that hold weights, whatever wrote them.

A reader returns plain CPU tensors under the names in the file; `weight_names.py` decides what they are called here and
`weight_fitting.py` whether a model can take them. What kind of file it is, its first bytes say, not its name.
"""

from __future__ import annotations

import hashlib
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
from torch import Tensor

from mask2former.modeling.unpickling import refused_content, unpickle, unpickle_torch

__all__ = ["WeightFile", "carries_hash", "read_weight_file"]

#: Entries under which known writers put the tensors: Detectron2, PyTorch Lightning and others, pycls, Caffe2.
_TENSOR_ENTRIES = ("model", "state_dict", "model_state", "blobs")
_ZIP_START = b"PK\x03\x04"
_LEGACY_TORCH_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
#: Names that say what is in the file, with the digest that publishers take.
_HASHED_NAMES = (
    (re.compile(r"model_final_([0-9a-f]{6})\.pkl"), "md5"),  # the model zoos of MaskFormer and Mask2Former
    # torch.hub's convention, e.g. resnet50-11ad3fa6.pth. Digits alone may be a date: model-20260131.pth.
    (re.compile(r".+-(?!\d+\.)([0-9a-f]{8,64})\.pth"), "sha256"),
)
#: Where the files that published configs name come from.
_ORIGINS = (
    (
        re.compile(r"R-\d+\.pkl"),
        ": tools/convert-torchvision-to-d2.py makes it from torchvision's file, which MODEL.WEIGHTS takes as it is too",
    ),
    (
        re.compile(r"swin_\w+\.pkl"),
        ": tools/convert-pretrained-swin-model-to-d2.py makes it from the file of Swin's authors, which MODEL.WEIGHTS "
        "takes as it is too",
    ),
    (_HASHED_NAMES[0][0], ": docs/model_zoo.md says where to download it"),
)
#: What readers raise for files that are cut off or something else: unpickling foreign bytes may end in any of these.
_READ_ERRORS = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)


@dataclass
class WeightFile:
    """What a file holds.

    Attributes:
        tensors: name in the file -> CPU tensor, any dtype.
        other: everything else in the file, e.g. the state of the trainer.
        settings: config key -> value of the model that the tensors are of, where the file says it.
    """

    tensors: dict[str, Tensor]
    other: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def read_weight_file(path: str | Path) -> WeightFile:
    """Read .safetensors, pickles (Detectron2's and Caffe2's), or anything that `torch.save` wrote.

    Pickles are read without running what they contain: only tensors, arrays and plain containers are accepted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, is no checkpoint, or contains objects that are refused.
    """
    path = Path(path)
    if not path.is_file():
        hint = next((hint for pattern, hint in _ORIGINS if pattern.fullmatch(path.name)), "")
        raise FileNotFoundError(
            f"checkpoint {str(path)!r} does not exist (MODEL.WEIGHTS, or last_checkpoint in OUTPUT_DIR){hint}"
        )
    _check_hash_in_name(path)
    try:
        if _is_safetensors(path):
            return _read_safetensors(path)
        content = _read_pickled(path)
    except _READ_ERRORS as error:
        if refused := refused_content(error):
            raise ValueError(
                f"checkpoint {str(path)!r} is refused: {refused}. Nothing in it was run. If you know what it is, its "
                "maker can save the tensors alone: torch.save(model.state_dict(), ...)"
            ) from error
        raise ValueError(
            f"checkpoint {str(path)!r} ({path.stat().st_size} bytes) cannot be read: it is cut off or no checkpoint. "
            f"Copy it again or choose an earlier one. ({type(error).__name__}: {error})"
        ) from error
    return _interpret(content, path)


def carries_hash(path: str | Path) -> bool:
    """Whether the name of a file says what its hash must be."""
    return any(pattern.fullmatch(Path(path).name) for pattern, _ in _HASHED_NAMES)


def _check_hash_in_name(path: Path) -> None:
    """Raise ValueError if a file is not the one that was published under its name."""
    for pattern, usual_digest in _HASHED_NAMES:
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        found = {}
        # Not everyone who follows one of the two conventions takes its usual digest.
        for digest in sorted(("md5", "sha256"), key=lambda name: name != usual_digest):
            found[digest] = _hexdigest(path, digest)[: len(match[1])]
            if found[digest] == match[1]:
                return
        raise ValueError(
            f"checkpoint {str(path)!r} ({path.stat().st_size} bytes) was cut off or altered: its name promises the "
            f"hash {match[1]}, it has {' and '.join(f'{value} ({digest})' for digest, value in found.items())}. "
            "Download it again, or give it a name without a hash if the change is yours"
        )


def _hexdigest(path: Path, name: str) -> str:
    digest = hashlib.new(name, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, of which four are zero, and a JSON object."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[4:] == b"\0\0\0\0{"


def _read_safetensors(path: Path) -> WeightFile:
    with safe_open(path, framework="pt") as file:
        return WeightFile({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - it is no mapping


def _read_pickled(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_TORCH_START))
        file.seek(0)
        if start == _LEGACY_TORCH_START or start.startswith(_ZIP_START):
            return unpickle_torch(file)
        return unpickle(file)


def _interpret(content: Any, path: Path) -> WeightFile:
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint {str(path)!r} holds a {type(content).__name__}, not named tensors")
    other = dict(content)
    entry = next((name for name in _TENSOR_ENTRIES if isinstance(other.get(name), Mapping)), None)
    named = other.pop(entry) if entry else other
    other.pop("matching_heuristics", None)  # Detectron2's mark of a backbone file: the names say it as well
    tensors = {name: _as_tensor(value, name, path) for name, value in named.items() if _is_named_tensor(name, value)}
    if not tensors:
        raise ValueError(f"checkpoint {str(path)!r} holds no tensors; its entries are {sorted(map(str, content))[:10]}")
    return WeightFile(tensors, other=other if entry else {})


def _is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor | np.ndarray)


def _as_tensor(value: Tensor | np.ndarray[Any, Any], name: str, path: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if value.dtype.kind not in "biuf":
        raise ValueError(f"checkpoint {str(path)!r}: {name!r} is an array of {value.dtype}, not of numbers")
    # A copy in this machine's byte order: NumPy's arrays out of a pickle may be read-only or foreign.
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
