"""Work on all cores: in order, with errors, and nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import time

import pytest

from mask2former.processes import map_in_processes, num_cores


def _number_and_process(item: int) -> tuple[int, int]:
    if item < 0:
        raise ValueError(f"{item} is negative")
    return item, os.getpid()


def _square_or_death(item: int) -> int:
    if item == 5:
        os._exit(9)  # as the system does to a process when memory runs out
    return item**2


def _process_of_initializer(_: int) -> str:
    return os.environ.get("INITIALIZED_IN", "")


def _initialize() -> None:
    os.environ["INITIALIZED_IN"] = str(os.getpid())


@pytest.mark.parametrize("from_copies", [True, False])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_order_from_other_processes(num_workers, from_copies):
    found = list(map_in_processes(_number_and_process, range(50), num_workers, from_copies=from_copies))
    assert [number for number, _ in found] == list(range(50))
    processes = {process for _, process in found}
    assert processes == {os.getpid()} if num_workers == 1 else os.getpid() not in processes


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_of_a_worker_is_raised(num_workers):
    with pytest.raises(ValueError, match="-1 is negative"):
        list(map_in_processes(_number_and_process, [1, 2, -1, 3], num_workers, from_copies=True))


def test_no_items_give_no_results():
    assert list(map_in_processes(_number_and_process, [], 2, from_copies=True)) == []


def test_workers_are_initialized_and_this_process_is_not():
    found = list(map_in_processes(_process_of_initializer, range(8), 2, from_copies=True, initialize=_initialize))
    assert all(found) and str(os.getpid()) not in found
    assert "INITIALIZED_IN" not in os.environ


def test_a_worker_that_is_killed_is_reported():
    with pytest.raises(ChildProcessError, match="one of 2 worker processes was killed"):
        list(map_in_processes(_square_or_death, range(20), 2, from_copies=True))


def test_there_are_no_more_workers_than_cores_for_this_process():
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


def _sleep(_: int) -> None:
    time.sleep(0.1)


def _map_for_ever(write_end: int) -> None:
    results = map_in_processes(_sleep, range(100_000), 2, from_copies=True)
    next(results)
    os.write(write_end, b"!")
    list(results)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are copies on Linux only")
def test_workers_end_when_their_main_process_is_killed():
    read_end, write_end = os.pipe()  # every copy of the process has the writing end, too
    main = multiprocessing.get_context("fork").Process(target=_map_for_ever, args=(write_end,))
    main.start()
    os.close(write_end)
    assert os.read(read_end, 1) == b"!", "the workers work"
    main.kill()
    main.join()
    assert select.select([read_end], [], [], 30)[0] and os.read(read_end, 1) == b"", "nobody has the writing end now"
    os.close(read_end)
    assert main.exitcode == -signal.SIGKILL
