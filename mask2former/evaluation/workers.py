"""Evaluation by many hands: results of all ranks come to rank 0, which judges them with all its cores."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from detectron2.utils import comm
from tqdm import tqdm

__all__ = ["gather_to_main", "map_in_processes", "num_cores"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_TASKS_PER_WORKER = 8  # enough that no worker is left with a long last task, few enough that sending them costs nothing


def gather_to_main(items: list[Any]) -> list[Any] | None:
    """The items of all ranks, in the order of ranks, on rank 0; None elsewhere. All ranks must call it.

    They travel through the process group: ranks need no common file system.
    """
    gathered = comm.gather(items, dst=0)
    return list(itertools.chain.from_iterable(gathered)) if comm.is_main_process() else None


def num_cores() -> int:
    """Cores this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, description: str, unit: str = "image"
) -> Iterator[Result]:
    """`function(item)` of every item, in order, from as many processes as there are cores; shows a progress bar.

    Args:
        function: can be pickled; NumPy and files only, no CUDA and no operator of torch; prints nothing.
        description, unit: what the progress bar says (nothing is shown where stderr is no terminal).
    """
    num_workers = min(num_cores(), len(items))
    progress = {"total": len(items), "desc": description, "unit": unit, "disable": None}
    if num_workers <= 1:
        yield from tqdm(map(function, items), **progress)
        return
    # In a rank that was itself spawned, the default would import torch anew for every worker: seconds and hundreds of
    # megabytes each. A fork is safe for functions that touch neither CUDA nor torch's threads.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context(method)) as pool:
        size = max(1, len(items) // (num_workers * _TASKS_PER_WORKER))
        yield from tqdm(pool.map(function, items, chunksize=size), **progress)
