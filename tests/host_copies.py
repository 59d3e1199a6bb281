"""Which calls would make the host wait for a GPU, found on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What Python reads of a tensor.
_FUNCTIONS = {
    Tensor.cpu: "cpu",
    Tensor.tolist: "tolist",
    Tensor.item: "item",
    Tensor.__bool__: "bool",
    Tensor.__int__: "int",
    Tensor.__float__: "float",
    Tensor.__index__: "index",
}
# How something of the host gets to a device; unless `non_blocking`, after all that the device has to do.
_COPIES = {Tensor.to: "to", torch.tensor: "tensor"}
# Operators whose result has a size, or is a number, that depends on values.
_OPERATORS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::masked_select",
    "aten::equal",
    "aten::bincount",
}


class HostCopies:
    """While it is entered, `names` collects what this thread calls; a call inside a recorded one does not count."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._modes = (_Functions(self.names), _Operators(self.names))

    def __enter__(self) -> list[str]:
        for mode in self._modes:
            mode.__enter__()
        return self.names

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, traceback)


class _Functions(TorchFunctionMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        length = len(self._names)
        result = function(*args, **kwargs)
        name = _FUNCTIONS.get(function)
        if not kwargs.get("non_blocking") and _names_a_device(*args[1:], *kwargs.values()):
            name = _COPIES.get(function, name)
        if name is not None:
            self._names[length:] = [name]
        return result


class _Operators(TorchDispatchMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.name().split(".")[0]
        by_mask = name in ("aten::index", "aten::index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        by_counts = operator.name() == "aten::repeat_interleave.Tensor"
        if name in _OPERATORS or by_mask or by_counts:
            self._names.append(name)
        return operator(*args, **(kwargs or {}))


def _names_a_device(*arguments: Any) -> bool:
    return any(isinstance(argument, (str, torch.device)) for argument in arguments)
