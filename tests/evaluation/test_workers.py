"""Results of all ranks at one place, and judged by all cores."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from mask2former import processes
from mask2former.evaluation.workers import BackgroundWork, gather_to_main, map_with_progress


def _number_and_process(item):
    return item, os.getpid()


@pytest.mark.parametrize("num_cores", [1, 3])
def test_results_come_in_order_from_as_many_processes_as_there_are_cores(num_cores, monkeypatch):
    monkeypatch.setattr(processes, "num_cores", lambda: num_cores)
    found = list(map_with_progress(_number_and_process, range(100), description="numbers"))
    assert [number for number, _ in found] == list(range(100))
    workers = {process for _, process in found}
    assert workers == {os.getpid()} if num_cores == 1 else os.getpid() not in workers


def test_one_process_has_all_items_already():
    assert gather_to_main([1, 2]) == [1, 2]


def _fail(number):
    raise ValueError(f"{number} is wrong")


def _die():
    os._exit(9)  # as the system does to a process when memory runs out


def _wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def _submitted(numbers, positions):
    work = BackgroundWork()
    for number, position in zip(numbers, positions, strict=True):
        work.submit({} if position is None else {"position": position}, _number_and_process, number)
    return work


@pytest.mark.parametrize("num_cores", [1, 3])
def test_background_work_is_done_by_other_processes_and_comes_in_order_of_arrival(num_cores, monkeypatch):
    monkeypatch.setattr(processes, "num_cores", lambda: num_cores)
    work = _submitted(range(40), [None] * 40)
    assert [number for number, _ in work.results()] == list(range(40))
    workers = {process for _, process in work.results()}  # a second time too
    assert os.getpid() not in workers and len(workers) <= max(1, num_cores - 1)


def test_samples_that_tell_their_position_come_in_that_order():
    work = _submitted([5, 6, 7], [2, 0, 1])
    assert [number for number, _ in work.gather()] == [6, 7, 5]
    assert [number for number, _ in work.results()] == [6, 7, 5]


def test_an_error_in_the_background_is_raised_where_results_are_asked_for():
    work = BackgroundWork()
    for number in (1, 2):
        work.submit({}, _fail, number)
    with pytest.raises(ValueError, match="1 is wrong"):
        work.results()


def test_results_do_not_pile_up(monkeypatch, tmp_path):
    """One worker has one item and four waiting; whoever brings a sixth waits, and hears of errors."""
    monkeypatch.setattr(processes, "num_cores", lambda: 2)
    work = BackgroundWork()
    work.submit({}, _wait_for, str(tmp_path / "go"))
    for number in range(3):
        work.submit({}, _fail, number)
    (tmp_path / "go").touch()
    with pytest.raises(ValueError, match="0 is wrong"):
        work.results()
    work.reset()
    assert work.results() == []


def test_a_killed_worker_is_named_and_others_take_over():
    work = BackgroundWork()
    work.submit({}, _die)
    with pytest.raises(ChildProcessError, match="worker processes was killed"):
        work.results()
    work.reset()
    assert [number for number, _ in _submitted([4], [None]).results()] == [4]


def test_workers_end_with_the_last_results():
    first, second = _submitted([1], [None]), _submitted([2], [None])
    first.results()
    assert multiprocessing.active_children()
    second.results()
    assert not multiprocessing.active_children()
