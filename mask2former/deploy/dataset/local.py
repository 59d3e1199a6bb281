"""The engine of one machine: worker processes, each with its own model and a short queue of batches."""

from __future__ import annotations

import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

from mask2former import processes
from mask2former.deploy.dataset.batches import KILLED, BatchSegmenter, Record, broken
from mask2former.deploy.dataset.inputs import Row

__all__ = ["segment_locally"]

logger = logging.getLogger(__name__)

Batch = list[Row]
MakeSegmenter = Callable[[int], BatchSegmenter]

_QUEUE_LENGTH = 2  # batches of a worker: one in work, and one so that it need not wait for this process
_MOST_DEATHS = 5  # of workers in a row, without a batch done between them


def segment_locally(
    rows: Iterable[Row],
    make_segmenter: MakeSegmenter,
    *,
    num_workers: int,
    batch_size: int,
    is_stopped: Callable[[], bool],
) -> Iterator[list[Record]]:
    """Records of all rows, batch by batch, in the order in which they are ready.

    A worker that is killed is replaced. The pictures that it was at are tried again one by one; one that ends a worker
    again is given up as broken.

    Args:
        make_segmenter: called in each worker with its number from 0; can be pickled.
        is_stopped: asked before a batch is begun; those in work are finished.

    Raises:
        ChildProcessError: workers die one after the other.
        Exception: the first error of a worker.
    """
    batches = _batches(rows, batch_size)
    workers = [_Worker(number, make_segmenter) for number in range(num_workers)]
    num_deaths = 0
    try:
        while True:
            for worker in workers:
                while not worker.is_full and not is_stopped():
                    batch = worker.next_again() or next(batches, None)
                    if batch is None:
                        break
                    worker.submit(batch)
            busy = {worker.oldest: worker for worker in workers if worker.is_busy}
            if not busy:
                return
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                try:
                    records = busy[future].take()
                    num_deaths = 0
                except BrokenProcessPool:
                    records = busy[future].replace()
                    num_deaths += 1
                yield records
            if num_deaths >= _MOST_DEATHS:
                raise ChildProcessError(
                    f"{num_deaths} worker processes were killed one after the other, probably because memory ran out: "
                    "take fewer --workers or a smaller --batch-size"
                )
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process and the batches that it was given, the oldest in work."""

    def __init__(self, number: int, make_segmenter: MakeSegmenter) -> None:
        self._prepare = functools.partial(_prepare, functools.partial(make_segmenter, number))
        self._executor = processes.start_workers(1, from_copies=False, initialize=self._prepare)
        self._queue: deque[tuple[Future[list[Record]], Batch]] = deque()
        self._again: deque[Batch] = deque()  # what was lost with a process that was killed
        self._suspects: set[str] = set()  # names of pictures that a process was killed at

    @property
    def is_busy(self) -> bool:
        return bool(self._queue)

    @property
    def is_full(self) -> bool:
        return len(self._queue) >= _QUEUE_LENGTH

    @property
    def oldest(self) -> Future[list[Record]]:
        return self._queue[0][0]

    def next_again(self) -> Batch | None:
        """A batch that was lost, to be submitted again."""
        return self._again.popleft() if self._again else None

    def submit(self, batch: Batch) -> None:
        try:
            future = self._executor.submit(_segment, batch)
        except BrokenProcessPool as error:  # killed just now; whoever waits for the batch finds out
            future = Future()
            future.set_exception(error)
        self._queue.append((future, batch))

    def take(self) -> list[Record]:
        """The records of the oldest batch, which is done."""
        records = self.oldest.result()
        self._queue.popleft()
        return records

    def replace(self) -> list[Record]:
        """Start a new process for a killed one; the record of the picture that it must have been killed by, if any."""
        self._executor.shutdown()
        self._executor = processes.start_workers(1, from_copies=False, initialize=self._prepare)
        (_, lost), *others = self._queue
        self._queue.clear()
        self._again.extendleft(batch for _, batch in reversed(others))
        if len(lost) == 1 and lost[0].name in self._suspects:
            return [broken(lost[0], KILLED)]
        names = ", ".join(row.name for row in lost)
        logger.warning("a worker process was killed and is replaced; it was at: %s", names)
        self._suspects.update(row.name for row in lost)
        self._again.extendleft([row] for row in reversed(lost))
        return []

    def end(self) -> None:
        self._executor.shutdown(cancel_futures=True)


def _batches(rows: Iterable[Row], batch_size: int) -> Iterator[Batch]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, batch_size)):
        yield batch


# In a worker process

_make_segmenter: Callable[[], BatchSegmenter] | None = None


def _prepare(make_segmenter: Callable[[], BatchSegmenter]) -> None:
    # The model is loaded with the first batch, whose caller then gets an error to show.
    global _make_segmenter
    _make_segmenter = make_segmenter


@functools.cache
def _segmenter() -> BatchSegmenter:
    assert _make_segmenter is not None, "workers are prepared when they start"
    return _make_segmenter()


def _segment(batch: Batch) -> list[Record]:
    return _segmenter()(batch)
