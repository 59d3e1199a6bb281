"""Seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds spent in named stages; on CUDA it waits for the device before it looks at the clock.

    A stage inside another one counts for itself alone, so that the stages add up to the whole.
    """

    def __init__(self, device: torch.device, *, processor_time: bool = False) -> None:
        """Args:
        processor_time: of all threads of this process instead of the time that passes; for a CPU with other work.
        """
        self.seconds: dict[str, float] = {}
        self._is_whole = False
        self._device = device
        self._running: list[str] = []
        self._since = 0.0
        self._watched: list[tuple[Any, str, Any]] = []
        self._clock = time.process_time if processor_time else time.perf_counter

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._running and self._is_whole:
            yield
            return
        self._look()
        self._running.append(name)
        try:
            yield
        finally:
            self._look()
            self._running.pop()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Counts every call of `owner.method` to a stage."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return original(*args, **kwargs)

        self._watched.append((owner, method, timed))
        setattr(owner, method, timed)

    @contextmanager
    def as_a_whole(self) -> Iterator[None]:
        """Meanwhile all time goes to the outermost stage, and watched methods are what they were: to wait for a GPU
        between stages would slow it down.
        """
        for owner, method, _ in self._watched:
            delattr(owner, method)
        self._is_whole = True
        try:
            yield
        finally:
            self._is_whole = False
            for owner, method, timed in self._watched:
                setattr(owner, method, timed)

    def _look(self) -> None:
        """Gives the time since the last look to the innermost stage."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = self._clock()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
