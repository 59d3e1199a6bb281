"""The script that times the training loader: every mapper gets its line. Nothing here judges speed."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_every_mapper_is_timed(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)  # as when it is run
    script = runpy.run_path(str(BENCHMARKS / "data_loading.py"))
    threads = torch.get_num_threads()
    sizes = ["INPUT.IMAGE_SIZE", "64", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.CROP.SIZE", "(32, 32)"]
    options = ["--size", "48", "64", "--objects", "3", "--workers", "0", "--batches", "1", "--repeats", "2"]
    try:
        assert script["main"]([*options, *sizes, "INPUT.SIZE_DIVISIBILITY", "32"]) == 0
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "48x64 pixels, 3 objects, polygons"
    assert [line.split()[0] for line in lines] == list(script["CONFIGS"])
    assert all(float(line.split()[2]) > 0 for line in lines)


def test_memory_is_told_after_each_epoch(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = runpy.run_path(str(BENCHMARKS / "data_loading.py"))
    options = ["--size", "48", "64", "--objects", "3", "--workers", "1", "--epochs", "2", "--copies", "3"]
    small = ["INPUT.IMAGE_SIZE", "64"]
    threads = torch.get_num_threads()
    try:
        assert script["main"]([*options, "--mappers", "coco_panoptic_lsj", "--", *small]) == 0
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
    title, line = capsys.readouterr().out.splitlines()
    assert title == "coco_panoptic_lsj, 1 workers, 72 records: MiB after each 24 samples"
    assert len(line.split()) == 2 and all(float(value) > 50 for value in line.split())
