"""The published command line for boundary AP."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from mask2former.data.masks import encode_rle

SCRIPT = Path(__file__).parents[2] / "tools" / "evaluate_coco_boundary_ap.py"


@pytest.fixture
def files(tmp_path):
    """One square, found two pixels smaller; the box of the result is of zeros, as published models write it."""
    true, found = (np.zeros((100, 100), dtype=bool) for _ in range(2))
    true[20:80, 20:80], found[22:80, 20:80] = True, True
    shape = {"iscrowd": 0, "area": 3600, "bbox": [20, 20, 60, 60], "segmentation": encode_rle(true)}
    content = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 3, "name": "square"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, **shape}],
    }
    result = {"image_id": 1, "category_id": 3, "score": 0.9, "bbox": [0, 0, 0, 0], "segmentation": encode_rle(found)}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps([result]))
    return tmp_path


def _run(monkeypatch, folder, *flags):
    paths = ["--gt-json-file", str(folder / "truth.json"), "--dt-json-file", str(folder / "results.json")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *paths, *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")


# Masks and boxes have an IoU of 58/60, above all ten thresholds. Boundaries are 3 pixels thick: 684 and 672 pixels, 564
# of them in common, IoU 0.712, above five.
@pytest.mark.parametrize(
    ("flags", "first_line_ends"),
    [
        ([], "= 0.500"),
        (["--dilation-ratio", "0.2"], "= 1.000"),
        (["--iou-type", "segm"], "= 1.000"),
        (["--iou-type", "bbox"], "= 1.000"),
    ],
)
def test_it_prints_the_summary_of_coco(files, monkeypatch, capsys, flags, first_line_ends):
    _run(monkeypatch, files, *flags)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith(" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all")
    assert lines[0].endswith(first_line_ends)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("truth.json", None, "annotation file .*truth.json' does not exist"),
        ("results.json", None, "result file .*results.json' does not exist"),
        ("truth.json", "{}", "truth.json cannot be used, .* the entry 'annotations' is missing"),
        ("results.json", "[", "results.json cannot be used"),
        ("results.json", "{}", "results must be a list of objects"),
        (
            "results.json",
            '[{"image_id": 7}]',
            "results.json cannot be judged by .*truth.json: entry 0 .* no 'category_id'",
        ),
    ],
)
def test_a_bad_file_is_named_in_one_sentence(files, monkeypatch, name, content, message):
    if content is None:
        (files / name).unlink()
    else:
        (files / name).write_text(content)
    with pytest.raises(SystemExit, match=f"^evaluate_coco_boundary_ap.py: error: .*{message}"):
        _run(monkeypatch, files)
