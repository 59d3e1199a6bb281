"""Tensors that depend on sizes alone: built once per size and device, kept outside modules and checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

__all__ = ["cached_constant", "used_constants"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_of_thread = threading.local()  # `users`: lists of those who collect what is asked for


def cached_constant(max_entries: int) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorator: remember the last `max_entries` results of a function from hashable numbers and a device to tensors.

    The bound keeps a run over pictures of many sizes from filling the memory. Callers must not write into the result.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            # A tensor born in inference mode could never take part in training afterwards.
            with torch.inference_mode(False), torch.no_grad():
                return function(*args, **kwargs)

        remembered = cast("Callable[Arguments, Result]", lru_cache(maxsize=max_entries)(build))

        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if torch.compiler.is_compiling():  # tracing must see the arithmetic and must not leave fake tensors behind
                return function(*args, **kwargs)
            result = remembered(*args, **kwargs)
            for user in getattr(_of_thread, "users", ()):
                user.append(result)
            return result

        return call

    return decorate


@contextmanager
def used_constants() -> Iterator[list[Any]]:
    """Collects what this thread asks for meanwhile, for those who need it longer than it is remembered."""
    before = getattr(_of_thread, "users", ())
    used: list[Any] = []
    _of_thread.users = (*before, used)
    try:
        yield used
    finally:
        _of_thread.users = before
