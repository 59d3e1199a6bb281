"""Evaluation by many hands: results of all ranks come to rank 0, which judges them with all its cores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from detectron2.utils import comm
from tqdm import tqdm

from mask2former import processes

__all__ = ["gather_to_main", "map_with_progress"]

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
