"""Evaluation by many hands: other processes work on results while the network runs on, and rank 0 gathers them all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

from detectron2.utils import comm
from tqdm import tqdm

from mask2former import processes

__all__ = ["BackgroundWork", "gather_to_main", "map_with_progress"]

_MOST_WORKERS = 8  # of a rank: more could not be fed
_QUEUE_LENGTH = 4  # items of each worker that may wait, so that results do not pile up in memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def gather_to_main(items: list[Any]) -> list[Any] | None:
    """The items of all ranks, in the order of ranks, on rank 0; None elsewhere. All ranks must call it.

    They travel through the process group: ranks need no common file system.
    """
    gathered = comm.gather(items, dst=0)
    return list(itertools.chain.from_iterable(gathered)) if comm.is_main_process() else None


def map_with_progress(
    function: Callable[[Item], Result], items: Sequence[Item], *, description: str
) -> Iterator[Result]:
    """`function(item)` of every image's item, in order, from as many processes as there are cores.

    Args:
        function: can be pickled; NumPy and files only, no CUDA and no operator of torch or OpenCV; prints nothing.
        description: what the progress bar says (nothing is shown where stderr is no terminal).
    """
    # Copies, because the program around an evaluation may be anyone's, without a `__main__` guard.
    results = processes.map_in_processes(function, items, processes.num_cores(), from_copies=True)
    yield from tqdm(results, total=len(items), desc=description, unit="image", disable=None)


class BackgroundWork:
    """What an evaluator makes of the results of each image, in other processes while the network runs on.

    All evaluators of a process share its workers: copies of this process, one for each core it may use but one.
    """

    def __init__(self) -> None:
        self._items: list[tuple[int | None, Future[Any]]] = []

    def submit(self, sample: Mapping[str, Any], function: Callable[..., Any], *arguments: Any) -> None:
        """Have `function(*arguments)` computed; it waits where too much is waiting already.

        Args:
            sample: the image, as the test loader made it.
            function: as for `map_with_progress`; its arguments travel to another process.
        """
        waiting = [future for _, future in self._items if not future.done()]
        if len(waiting) >= _QUEUE_LENGTH * _WORKERS.number:
            _WORKERS.result_of(waiting[0])
        self._items.append((sample.get("position"), _WORKERS.submit(self, function, *arguments)))

    def results(self) -> list[Any]:
        """What the functions returned, in the order of the dataset, or of arrival where samples do not tell theirs.

        Raises:
            Exception: the first error of a function.
        """
        return [result for _, result in self._finished()]

    def gather(self) -> list[Any] | None:
        """The results of all ranks, in the same order, on rank 0; None elsewhere. All ranks must call it."""
        gathered = gather_to_main(self._finished())
        return None if gathered is None else [result for _, result in _in_order(gathered)]

    def reset(self) -> None:
        """Forget everything."""
        for _, future in self._items:
            future.cancel()
        self._items = []
        _WORKERS.release(self)

    def _finished(self) -> list[tuple[int | None, Any]]:
        try:
            return _in_order([(position, _WORKERS.result_of(future)) for position, future in self._items])
        finally:
            _WORKERS.release(self)


class _Workers:
    """Processes that run as long as someone waits for them."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._users: WeakSet[BackgroundWork] = WeakSet()
        self.number = 1

    def submit(self, user: BackgroundWork, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if self._executor is None:
            share = processes.num_cores() // comm.get_local_size()
            self.number = max(1, min(_MOST_WORKERS, share - 1))
            self._executor = processes.start_workers(self.number, from_copies=True)
        self._users.add(user)
        with self._forgotten_when_killed():
            return self._executor.submit(function, *arguments)

    def result_of(self, future: Future[Any]) -> Any:
        with self._forgotten_when_killed():
            return future.result()

    def release(self, user: BackgroundWork) -> None:
        self._users.discard(user)
        if self._executor is not None and not self._users:
            self._executor.shutdown()
            self._executor = None

    @contextmanager
    def _forgotten_when_killed(self) -> Iterator[None]:
        """When one of them was killed the others end too; new ones are started for those who come after."""
        try:
            with processes.killed_workers_named(self.number):
                yield
        except ChildProcessError:
            self._executor = None
            raise


_WORKERS = _Workers()


def _in_order(items: list[tuple[int | None, Any]]) -> list[tuple[int | None, Any]]:
    if any(position is None for position, _ in items):
        return items
    return sorted(items, key=lambda item: item[0] or 0)
