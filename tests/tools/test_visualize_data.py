"""tools/visualize_data.py: what lands in the folder, what is shown, and mistakes on the command line."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.engine.tiny import CONFIGS, arguments

SCRIPT = str(Path(__file__).parents[2] / "tools/visualize_data.py")
CONFIG = str(CONFIGS / "digits/panoptic.yaml")


@pytest.fixture
def tool(digits_root):
    return runpy.run_path(SCRIPT, run_name="visualize_data")


@pytest.mark.parametrize(("source", "first"), [("dataloader", None), ("annotation", "000000_000000.png")])
def test_pictures_of_both_sources_are_written(tool, tmp_path, source, first):
    folder = tmp_path / "drawn"
    options = ["--config-file", CONFIG, "--source", source, "--output-dir", str(folder), "--num", "3"]
    tool["main"]([*options, *arguments(tmp_path)])
    names = sorted(path.name for path in folder.iterdir())
    assert [name[:7] for name in names] == ["000000_", "000001_", "000002_"]
    assert first is None or names[0] == first


def test_escape_ends_the_show(tool, tmp_path, monkeypatch):
    shown = []

    class FakeWindow:
        def __init__(self, title):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def show(self, picture, *, wait):
            shown.append(picture.shape)
            return wait and len(shown) < 2

    monkeypatch.setitem(tool["main"].__globals__, "Window", FakeWindow)
    tool["main"](["--config-file", CONFIG, "--show", *arguments(tmp_path)])
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num", "0", "--show"], "--num must be 1 or more, got 0"),
        ([], "nowhere to draw to: add --output-dir FOLDER, --show, or both"),
        (["--source", "memory", "--show"], "invalid choice: 'memory'"),
    ],
)
def test_mistakes_on_the_command_line_are_named(tool, options, message, capsys):
    with pytest.raises(SystemExit):
        tool["main"](["--config-file", CONFIG, *options])
    assert message in capsys.readouterr().err


def test_a_missing_data_set_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--config-file", CONFIG, "--output-dir", str(tmp_path / "drawn")])
    with pytest.raises(SystemExit, match=r"^visualize_data\.py: error: data set 'digits_panoptic_train': "):
        runpy.run_path(SCRIPT, run_name="__main__")
    assert not (tmp_path / "drawn").exists()
