"""Dynamic batches: requests hand in single pictures, and threads take several at once through the network."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mask2former.deploy.results import Segmentation, Task

__all__ = ["Batcher", "ClosedError", "Job"]

_LOG = logging.getLogger(__name__)


class Segment(Protocol):
    """What a `Segmenter` does with several pictures."""

    def __call__(self, images: Sequence[NDArray[np.uint8]], task: Task, /) -> list[Segmentation]: ...


class ClosedError(RuntimeError):
    """The batcher takes no more pictures."""


@dataclass
class Job:
    """One picture on its way. Times are of `time.monotonic`.

    `result` is cancelled by whoever no longer wants it: that succeeds until the network has begun with the picture.
    """

    picture: NDArray[np.uint8]
    task: Task
    submitted: float = field(default_factory=time.monotonic)
    begun: float | None = None
    batch_size: int | None = None
    result: Future[Segmentation] = field(default_factory=Future)


class Batcher:
    """Runs a segmenter in threads of its own.

    Pictures are taken in the order in which they came. A batch holds pictures of one task; those of others keep their
    places. Whoever hands in bounds how many wait: this queue has no limit of its own.

    Args:
        segment: called with 1..`max_batch_size` (H, W, 3) uint8 RGB pictures, from every worker's thread.
        max_batch_size, max_wait_seconds, num_workers: see `ServiceSettings`.
        on_batch: told after every call of `segment` how many pictures it had and how many seconds it took.
        on_start: called in every worker's thread before anything else.
    """

    def __init__(
        self,
        segment: Segment,
        *,
        max_batch_size: int,
        max_wait_seconds: float,
        num_workers: int = 1,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._segment = segment
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._on_batch, self._on_start = on_batch, on_start
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        names = (f"inference-{number}" for number in range(num_workers))
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]

    def start(self) -> None:
        """Begins with what has been handed in so far."""
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, picture: NDArray[np.uint8], task: Task) -> Job:
        """Puts an (H, W, 3) uint8 RGB picture at the end of the queue.

        Raises:
            ClosedError: after `close`.
        """
        job = Job(picture, task)
        with self._changed:
            if self._is_closed:
                raise ClosedError("the service is shutting down")
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def close(self) -> None:
        """Takes no more pictures, finishes those that are there, and returns when that is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        self._on_start()
        while self._wait():
            if batch := self._take():
                self._run(batch)

    def _wait(self) -> bool:
        """Returns when there is work, with a full batch if one comes together in time; False: there will be none.

        Another worker may be faster and leave nothing.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            self._changed.wait_for(self._has_full_batch, timeout=self._max_wait_seconds)
            return bool(self._waiting) or not self._is_closed

    def _take(self) -> list[Job]:
        """The next pictures of one task, from now on beyond cancelling. None are left if all waiting were cancelled."""
        batch: list[Job] = []
        others: list[Job] = []
        with self._changed:
            while self._waiting and len(batch) < self._max_batch_size:
                job = self._waiting.popleft()
                if batch and job.task != batch[0].task:
                    others.append(job)
                elif job.result.set_running_or_notify_cancel():
                    batch.append(job)
            self._waiting.extendleft(reversed(others))
        return batch

    def _has_full_batch(self) -> bool:
        return self._is_closed or len(self._waiting) >= self._max_batch_size

    def _run(self, batch: list[Job]) -> None:
        begun = time.monotonic()
        for job in batch:
            job.begun, job.batch_size = begun, len(batch)
        try:
            results = self._segment([job.picture for job in batch], batch[0].task)
        # Whatever goes wrong belongs to the requests, not to this thread, which must go on.
        except Exception as error:  # noqa: BLE001
            _LOG.exception("inference failed", extra={"batch_size": len(batch)})
            if len(batch) == 1:
                batch[0].result.set_exception(error)
            else:  # maybe only one of the pictures is to blame
                for job in batch:
                    self._run([job])
        else:
            self._on_batch(len(batch), time.monotonic() - begun)
            for job, result in zip(batch, results, strict=True):
                job.result.set_result(result)
