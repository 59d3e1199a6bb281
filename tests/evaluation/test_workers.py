"""Results of all ranks at one place, and judged by all cores."""

from __future__ import annotations

import os

import pytest

from mask2former import processes
from mask2former.evaluation.workers import gather_to_main, map_with_progress


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
