"""Work on all cores: in order, with errors, and without processes where there is one core."""

from __future__ import annotations

import os

import pytest

from mask2former.evaluation import workers


def _number_and_process(item):
    if item < 0:
        raise ValueError(f"{item} is negative")
    return item, os.getpid()


@pytest.mark.parametrize("num_cores", [1, 3])
def test_results_come_in_order_from_as_many_processes_as_there_are_cores(num_cores, monkeypatch):
    monkeypatch.setattr(workers, "num_cores", lambda: num_cores)
    found = list(workers.map_in_processes(_number_and_process, range(100), description="numbers"))
    assert [number for number, _ in found] == list(range(100))
    processes = {process for _, process in found}
    assert processes == {os.getpid()} if num_cores == 1 else os.getpid() not in processes


@pytest.mark.parametrize("num_cores", [1, 2])
def test_an_error_of_a_worker_is_raised(num_cores, monkeypatch):
    monkeypatch.setattr(workers, "num_cores", lambda: num_cores)
    with pytest.raises(ValueError, match="-1 is negative"):
        list(workers.map_in_processes(_number_and_process, [1, 2, -1, 3], description="numbers"))


def test_no_items_give_no_results():
    assert list(workers.map_in_processes(_number_and_process, [], description="numbers")) == []


def test_one_process_has_all_items_already():
    assert workers.gather_to_main([1, 2]) == [1, 2]
