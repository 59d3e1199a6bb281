"""Reading pickles without running what they contain.

A pickle is a program: it names functions and calls them. The only ones it gets here build NumPy arrays of numbers,
tensors of torch and plain containers; any other name ends the reading, before anything is called.
"""

from __future__ import annotations

import codecs
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["reason_of_refusal", "unpickle", "unpickle_torch"]

#: Kinds of NumPy's types that are numbers: bool, int, unsigned, float, complex. Not objects, texts, records or dates.
_NUMERIC_KINDS = "biufc"
_NUMERIC_TYPES = [
    dtype for dtype in map(np.dtype, np.typecodes["All"].replace("V", "")) if dtype.kind in _NUMERIC_KINDS
]


def unpickle(file: IO[bytes]) -> Any:
    """What a pickle file holds (`pickle.dump` wrote it, or a program in Python 2).

    Raises:
        pickle.UnpicklingError: it asks for something that is not allowed; the message names it.
        Exception: foreign bytes may end in almost any error.
    """
    # latin1 is what arrays pickled by Python 2 need, as some published ones were.
    return _TensorUnpickler(file, encoding="latin1").load()


def unpickle_torch(file: str | Path | IO[bytes]) -> Any:
    """What a file of `torch.save` holds, on the CPU; raises as `unpickle` does."""
    with torch.serialization.safe_globals(_globals_for_torch()):
        return torch.load(file, map_location="cpu", weights_only=True)


def reason_of_refusal(error: Exception) -> str:
    """What a reader says, without torch's advice to run the file's code nevertheless."""
    refused = re.search(r"nsupported (?:\w+: )?GLOBAL ([\w.]+)", str(error))
    if refused:
        return _refusal(refused[1])
    if "weights_only" in str(error):
        return "it is of a kind that cannot be read without running it"
    return str(error) if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: {error}"


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get((module, name))
        if allowed is None:
            raise pickle.UnpicklingError(_refusal(f"{module}.{name}"))
        # A pickle may also set attributes of what it was given. Types written in C refuse that; a Python function would
        # not, so every mention gets a new one around it, and what is done to that concerns nobody else.
        return allowed if isinstance(allowed, type) else lambda *arguments: allowed(*arguments)


def _refusal(name: str) -> str:
    return f"it asks for {name}, which is neither tensor nor plain value"


def _numeric_dtype(text: str, align: bool = False, copy: bool = False) -> np.dtype[Any]:
    """`numpy.dtype` as pickles call it, for numbers only: arrays of objects would hold anything."""
    dtype = np.dtype(text) if isinstance(text, str) else np.dtype(object)
    if dtype.kind not in _NUMERIC_KINDS:
        raise pickle.UnpicklingError(_refusal(f"a NumPy array of type {text!r}"))
    return np.dtype(text, align=align, copy=copy)


def _encode(text: str, encoding: str) -> bytes:
    """`codecs.encode` as pickles before protocol 3 call it, which have no bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(_refusal(f"text encoded as {encoding!r}"))
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """`torch.storage._load_from_bytes`, which in torch would unpickle the inner bytes without restrictions."""
    return unpickle_torch(io.BytesIO(content))


def _parameter(data: Tensor, requires_grad: bool, hooks: object) -> Tensor:
    """`torch._utils._rebuild_parameter` without hooks, which would be called in a backward pass."""
    return nn.Parameter(data, requires_grad=False)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object) -> Tensor:
    """`torch._utils._rebuild_tensor_v2` without hooks; torch checks that the storage is long enough."""
    return torch.empty(0, dtype=storage.dtype).set_(storage, offset, size, stride)


_reconstruct: Callable[..., Any] = np.zeros(0).__reduce__()[0]  # type: ignore[assignment, index]
_scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment, index]
_frombuffer: Callable[..., Any] = np.zeros(1).__reduce_ex__(5)[0]  # type: ignore[assignment, index]

_ALLOWED: dict[tuple[str, str], Any] = {
    # Under the module names of Python 2 and 3.
    **{(module, kind.__name__): kind for module in ("__builtin__", "builtins") for kind in (set, frozenset)},
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _numeric_dtype,
    # Under the module names of NumPy 1 and 2.
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}


def _globals_for_torch() -> list[Any]:
    """NumPy's part of the above, which torch refuses on its own; numbers beside the weights are often NumPy's."""
    functions = [
        (function, f"{module}.{name}")
        for (module, name), function in _ALLOWED.items()
        if module.startswith("numpy") and (module, name) != ("numpy", "ndarray")
    ]
    return [*functions, np.ndarray, *{type(dtype) for dtype in _NUMERIC_TYPES}, (codecs.encode, "_codecs.encode")]
