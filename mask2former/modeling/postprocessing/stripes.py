"""Blocks of rows on several CPU threads, each with blocks of its own instead of a part of every operation.

An operation on a block that fits a core's cache takes less time than gathering the other threads for it; where other
programs share the machine, waiting for these takes many times as long.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["for_each_stripe", "num_stripes"]

Item = TypeVar("Item")

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive it


def num_stripes(device: torch.device) -> int:
    """How many stripes are worked on at once: on the CPU as many as torch has threads."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def for_each_stripe(work: Callable[[Sequence[Item]], None], items: Sequence[Item], device: torch.device) -> None:
    """Calls `work` with all items, in stripes of neighbors, each in order; without gradients."""
    num_threads = num_stripes(device)
    count = min(num_threads, len(items))
    if count <= 1:
        work(items)
        return
    is_inference = torch.is_inference_mode_enabled()

    def work_on(stripe: int) -> None:
        # Modes belong to the thread that set them.
        with torch.inference_mode(is_inference), torch.no_grad():
            work(items[len(items) * stripe // count : len(items) * (stripe + 1) // count])

    for _ in _pool(num_threads).map(work_on, range(count)):  # raises what a thread raised
        pass


def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads whose operations run on them alone."""
    with _pools_lock:
        if num_threads not in _pools:
            pool = ThreadPoolExecutor(num_threads, thread_name_prefix="mask2former-stripe")
            all_started = threading.Barrier(num_threads)

            def start(_: int) -> None:
                torch.get_num_threads()  # a new thread takes over torch's number when it first asks for it
                torch.set_num_threads(1)
                all_started.wait()

            try:
                list(pool.map(start, range(num_threads)))
            finally:
                torch.set_num_threads(num_threads)  # what was set is also for threads to come
            _pools[num_threads] = pool
        return _pools[num_threads]
