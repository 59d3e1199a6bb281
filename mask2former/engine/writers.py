"""The progress line on the console."""

from __future__ import annotations

import datetime
import logging
import resource
import sys

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

__all__ = ["ProgressWriter", "peak_memory_mib"]

_WINDOW = 20  # steps over which figures are smoothed (median)


def peak_memory_mib() -> float:
    """Largest memory so far in MiB: allocated on the GPU if there is one, else resident in this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class ProgressWriter(EventWriter):
    """Prints step, loss and its kinds, learning rate, seconds per step, time left and memory.

    Detectron2's `CommonMetricPrinter` prints every loss of every decoder layer (30 figures) and no memory on CPU. Here
    the losses of a kind are added up over the layers; metrics.json and TensorBoard keep them apart.
    """

    def __init__(self, max_iter: int) -> None:
        self._max_iter = max_iter
        self._logger = logging.getLogger(__name__)

    def write(self) -> None:
        storage = get_event_storage()
        histories = storage.histories()
        if storage.iter >= self._max_iter or "data_time" not in histories:
            return  # the call after the last step, or before the first
        kinds: dict[str, float] = {}
        for name, history in histories.items():
            if name.startswith("loss_"):
                kind = name.removeprefix("loss_").split("_")[0]
                kinds[kind] = kinds.get(kind, 0.0) + history.median(_WINDOW)
        parts = [f"step {storage.iter + 1}/{self._max_iter}"]
        if "total_loss" in histories:
            details = " ".join(f"{kind} {value:.3f}" for kind, value in kinds.items())
            parts.append(f"loss {histories['total_loss'].median(_WINDOW):.3f}" + f" ({details})" * bool(details))
        if "lr" in histories:
            parts.append(f"lr {histories['lr'].latest():.3g}")
        parts += self._times(storage)
        parts.append(f"memory {peak_memory_mib():.0f} MiB")
        for name, label in (("skipped_steps", "steps skipped"), ("broken_samples", "broken samples")):
            if name in histories:
                parts.append(f"{label} {histories[name].latest():.0f}")
        self._logger.info("  ".join(parts))

    def _times(self, storage: EventStorage) -> list[str]:
        histories = storage.histories()
        if "time" not in histories:  # the timer leaves out the first steps
            return []
        seconds_left = histories["time"].median(1000) * (self._max_iter - storage.iter - 1)
        storage.put_scalar("eta_seconds", seconds_left, smoothing_hint=False)
        return [
            f"{histories['time'].median(_WINDOW):.3f} s/step (data {histories['data_time'].avg(_WINDOW):.3f})",
            f"eta {datetime.timedelta(seconds=int(seconds_left))}",
        ]
