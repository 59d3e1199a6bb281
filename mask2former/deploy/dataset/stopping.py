"""Ending a run early without losing what is in work."""

from __future__ import annotations

import logging
import signal
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what clusters send before they take a machine away


class StopSignals:
    """In `with`: the first Ctrl-C or SIGTERM only sets `received`, the second ends the program as usual.

    Attributes:
        received: number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._handlers = {number: signal.signal(number, self._take) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        logger.warning("%s: finishing what is in work; once more ends at once", signal.Signals(number).name)
