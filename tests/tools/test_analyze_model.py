"""tools/analyze_model.py: every task prints, on a picture of a given size as well as on pictures of a data set."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.engine.tiny import CONFIGS, arguments

ROOT = Path(__file__).parents[2]
CONFIG = str(CONFIGS / "digits/panoptic.yaml")


@pytest.fixture
def analyze(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main = runpy.run_path("tools/analyze_model.py", run_name="analyze_model")["main"]

    def run(*options: str) -> str:
        main(["--config-file", CONFIG, *options, *arguments(tmp_path)])
        return capsys.readouterr().out

    return run


def test_all_tasks_print_for_one_picture_of_a_given_size(analyze):
    printed = analyze("--tasks", "flop", "activation", "parameter", "structure", "--input-size", "64", "96")
    for expected in ("sem_seg_head.pixel_decoder", "deformable attention", "million activations", "(backbone): ResNet"):
        assert expected in printed
    assert "total of 1 picture(s)" in printed and "±" not in printed


def test_the_fixed_size_is_the_side_of_the_training_crop(analyze):
    assert analyze("--tasks", "flop", "--use-fixed-input-size") == analyze(
        "--tasks", "flop", "--input-size", "64", "64"
    )


def test_counts_are_averaged_over_pictures_of_the_test_set(analyze, digits_root):
    assert "total of 2 picture(s)" in analyze("--tasks", "activation", "-n", "2")


def test_no_pictures_are_refused(analyze, capsys):
    with pytest.raises(SystemExit):
        analyze("--tasks", "flop", "-n", "0")
    assert "--num-inputs 0 must be at least 1" in capsys.readouterr().err
