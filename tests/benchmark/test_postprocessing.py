"""The script that measures post-processing: both sides get their lines. Nothing here judges speed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "postprocessing.py"


@pytest.mark.skipif(sys.platform != "linux", reason="its memory is measured through /proc")
@pytest.mark.parametrize(
    ("arguments", "sides"),
    [
        ([], ["blocks", "straightforward"]),
        (["--alone", "--semantic", "labels", "--instances", "run_lengths", "--output", "50", "30"], ["blocks"]),
        (["--alone", "--tasks", "panoptic"], ["blocks"]),
    ],
)
def test_both_sides_have_their_figures(arguments: list[str], sides: list[str], capsys) -> None:
    spec = importlib.util.spec_from_file_location("postprocessing_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(["--size", "40", "50", "--queries", "10", "--repeats", "2", *arguments]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("10 queries, MaskSizes(padded=(64, 64), image=(40, 50)")
    assert [line.split()[0] for line in lines] == sides
