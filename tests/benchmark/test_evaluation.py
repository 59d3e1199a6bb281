"""The script that times evaluation: every kind of results gets its line. Nothing here judges speed."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_every_kind_of_results_is_timed(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)  # as when it is run
    script = runpy.run_path(str(BENCHMARKS / "evaluation.py"))
    threads = torch.get_num_threads()
    try:
        assert script["main"](["--size", "48", "64", "--objects", "3", "--images", "2", "--repeats", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "2 images of 48x64; milliseconds per image"
    assert [line.split()[0] for line in lines] == ["panoptic", "instance", "semantic"]
    assert all(float(line.split()[1]) > 0 for line in lines)
