"""Worker processes: where they are started, how they end, and what is said when one is killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["killed_workers_named", "map_in_processes", "num_cores", "start_workers"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 4  # items a worker gets at a time: enough to hide the transfer, few to wait for after an error or Ctrl-C


def num_cores() -> int:
    """Cores this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int,
    *,
    from_copies: bool,
    initialize: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """`function(item)` of every item, in order.

    Args:
        function: can be pickled: of the top level of a module, or a `partial` of such a one.
        num_workers: 1 works in this process.
        from_copies, initialize: see `start_workers`.

    Raises:
        ChildProcessError: a worker was killed.
        Exception: the first error of the function, in the order of items.
    """
    num_workers = min(num_workers, len(items))
    if num_workers <= 1:
        yield from map(function, items)
        return
    chunk = max(1, min(_CHUNK, len(items) // (4 * num_workers)))
    with start_workers(num_workers, from_copies=from_copies, initialize=initialize) as executor:
        try:
            with killed_workers_named(num_workers):
                yield from executor.map(function, items, chunksize=chunk)
        finally:
            executor.shutdown(cancel_futures=True)


def start_workers(
    num_workers: int, *, from_copies: bool, initialize: Callable[[], object] | None = None
) -> ProcessPoolExecutor:
    """Worker processes, which start with the first work and end with this process.

    Args:
        from_copies: start workers as copies of this process (a fork). That costs nothing and needs no `__main__` guard
            in the program, but is only for functions of NumPy and files: CUDA, operators of torch and of OpenCV may
            wait for ever there, because their threads are not copied. Otherwise a server is started that imports this
            package once, for seconds, and all workers are copies of that. Where processes cannot be copied at all,
            each worker starts from nothing.
        initialize: called first in every worker, not in this process.
    """
    can_copy = sys.platform == "linux"  # on macOS the system's own libraries do not bear it
    context = multiprocessing.get_context(("fork" if from_copies else "forkserver") if can_copy else "spawn")
    if can_copy and not from_copies:
        context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(num_workers, context, _start_worker, (initialize,))


@contextmanager
def killed_workers_named(num_workers: int) -> Iterator[None]:
    """Raises ChildProcessError in words when one of the workers was killed."""
    try:
        yield
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {num_workers} worker processes was killed, probably because memory ran out"
        ) from error


def _start_worker(initialize: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which ends its workers
    # What a copy has inherited stays as it is: it is not the worker's to release, above all not memory of a GPU.
    gc.freeze()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initialize is not None:
        initialize()


def _end_with_parent() -> None:
    """Ends a worker whose main process was killed: it would wait for the next item for ever, and a copy would keep the
    main process's memory of a GPU from being freed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by a main process"
    parent.join()
    os._exit(1)
