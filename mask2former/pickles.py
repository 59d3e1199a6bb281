"""Reading pickles without running what they contain.

A pickle is a program: it names functions and calls them. The only ones it gets here build plain containers and NumPy
arrays of numbers, texts and such containers; any other name ends the reading, before anything is called.

NumPy's own functions trust the pickle too much to be given away. `numpy.ndarray` takes bytes for addresses of objects,
and whoever may set the state of a `numpy.dtype` decides how far beyond its memory an array reaches. Others stand in
their places here.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, SupportsIndex

import numpy as np

__all__ = ["PLAIN", "PlainUnpickler", "RefusalError"]

#: Kinds of NumPy's types: bool, int, unsigned, float, complex; objects, bytes, text. Not records, which hold others.
_KINDS = "biufcOSU"


class PlainUnpickler(pickle.Unpickler):
    """Raises RefusalError with the name of what is not in `allowed`; foreign bytes may end in any error."""

    #: (module, name) in the pickle -> what it gets.
    allowed: ClassVar[Mapping[tuple[str, str], Any]]

    def find_class(self, module: str, name: str) -> Any:
        given = self.allowed.get((module, name))
        if given is None:
            raise RefusalError(f"{module}.{name}")
        # A pickle may also set attributes of what it was given. Types in C refuse that, and those below take it for
        # their own state; a Python function would not, so every mention gets a new one around it, and what is done to
        # that concerns nobody else.
        return given if isinstance(given, type) else lambda *arguments: given(*arguments)


class RefusalError(pickle.UnpicklingError):
    """A pickle asks for something that it does not get."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}, which is neither tensor nor plain value")


class _Dtype:
    """In the place of `numpy.dtype`: of the types in `_KINDS`, in any byte order."""

    def __init__(self, text: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(text, str) or (numpy := np.dtype(text)).kind not in _KINDS:
            raise RefusalError(f"a NumPy array of type {text!r}")
        self.numpy: np.dtype[Any] = numpy

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, byte_order, subarray, names, fields, *_ = state
        if any(part is not None for part in (subarray, names, fields)):
            raise RefusalError("a NumPy array of records")
        self.numpy = self.numpy.newbyteorder(byte_order)


def _numpy_dtype(stand_in: object) -> np.dtype[Any]:
    if not isinstance(stand_in, _Dtype):
        raise pickle.UnpicklingError(f"an array cannot be of type {stand_in!r}")
    return stand_in.numpy


class _Array(np.ndarray[Any, Any]):
    """In the place of `numpy.ndarray`: empty at first, then given its state."""

    __slots__ = ()

    def __new__(cls) -> _Array:
        return super().__new__(cls, (0,))

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]  # NumPy's types know another form
        version, shape, stand_in, is_fortran, content = state
        dtype = _numpy_dtype(stand_in)
        # Unlike the length of bytes, NumPy does not check that of a list.
        if dtype.kind == "O" and not (isinstance(content, list) and len(content) == math.prod(shape)):
            raise pickle.UnpicklingError(f"an array of shape {shape} has other content than a list of its objects")
        super().__setstate__((version, shape, dtype, is_fortran, content))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)  # as an ordinary array


_numpy_scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment, index]
_numpy_frombuffer: Callable[..., Any] = np.zeros(1).__reduce_ex__(5)[0]  # type: ignore[assignment, index]


def _reconstruct(_: type[_Array], __: tuple[int, ...], ___: bytes | str) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, content: Any) -> Any:
    return _numpy_scalar(_numpy_dtype(dtype), content)


def _frombuffer(content: bytes, dtype: _Dtype, *layout: Any) -> Any:
    return _numpy_frombuffer(content, _numpy_dtype(dtype), *layout)


def _encode(text: str, encoding: str) -> bytes:
    """`codecs.encode` as pickles before protocol 3 call it, which have no bytes."""
    if encoding != "latin1":
        raise RefusalError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes` as those pickles call it when there are none."""
    return b""


#: Plain containers and arrays.
PLAIN: Mapping[tuple[str, str], Any] = {
    # Under the module names of Python 2 and 3.
    **{
        (module, name): given
        for module in ("__builtin__", "builtins")
        for name, given in (("set", set), ("frozenset", frozenset), ("bytes", _no_bytes))
    },
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
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
}
PlainUnpickler.allowed = PLAIN
