"""tools/segment_dataset.py with the shipped model: tables of results, and what its exit status says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from mask2former.data.reading import read_image
from mask2former.deploy import load

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "weights/digits_panoptic.safetensors")


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / "tools/segment_dataset.py"), run_name="segment_dataset")["main"]


@pytest.fixture
def segment(main, tmp_path):
    """Runs the tool with one process and gives its exit status."""

    def run(source, *options):
        return main(
            ["--model", MODEL, "--input", str(source), "--output", str(tmp_path / "out"), "--workers=1", *options]
        )

    return run


@pytest.fixture
def scenes(digits_root):
    return digits_root / "digits" / "val"


@pytest.mark.parametrize("masks", ["rle", "polygons"])
def test_a_table_holds_what_the_segmenter_gives(segment, scenes, tmp_path, capsys, masks):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert segment(scenes, "--masks", masks, "--batch-size", "1") == 0
    assert "4 pictures: 4 results, 0 broken, 0 left" in capsys.readouterr().out
    rows = parquet.read_table(tmp_path / "out/part-00000.parquet").to_pylist()
    segmenter = load(MODEL)
    assert sorted(row["name"] for row in rows) == sorted(path.name for path in scenes.glob("*.png"))
    for row in rows:
        result = segmenter(read_image(str(scenes / row["name"]), "RGB")).to_json(masks=masks)
        expected = {"name": row["name"], **json.loads(json.dumps(result))}
        scores = [[segment.pop("score") for segment in record["segments"]] for record in (row, expected)]
        np.testing.assert_allclose(*scores, rtol=1e-4)
        assert row == expected


def test_broken_pictures_make_the_exit_status_1_and_are_listed(segment, scenes, tmp_path, capsys):
    names = [str(path) for path in scenes.glob("*.png")][:1]
    (tmp_path / "list.txt").write_text("\n".join([*names, *names, "nowhere.png"]))
    for _ in range(2):  # a second run has nothing to do, but not all is well
        assert segment(tmp_path / "list.txt", "--task", "semantic", "--format", "jsonl") == 1
    captured = capsys.readouterr()
    assert "1 pictures are named more than once" in captured.err and "errors.jsonl says why 1" in captured.err
    assert "does not exist" in json.loads((tmp_path / "out/errors.jsonl").read_text())["error"]
    assert json.loads((tmp_path / "out/part-00000.jsonl").read_text())["task"] == "semantic"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "nowhere"], "--input 'nowhere' does not exist"),
        (["--model", "nowhere.pth"], "checkpoint 'nowhere.pth' does not exist"),
        (["--task", "depth"], "--task 'depth' is not one of this model's: panoptic"),
        (["--workers", "1..2"], "only --engine ray changes the number of workers"),
        (["--output", __file__], "File exists"),
    ],
)
def test_wrong_use_is_said_in_one_line(segment, scenes, capsys, options, message):
    assert segment(scenes, *options) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
