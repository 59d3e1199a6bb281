"""tools/visualize_json_results.py: files written, files kept, and mistakes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data.masks import decode_segmentations, encode_rle
from mask2former.data.reading import read_class_map

SCRIPT = str(Path(__file__).parents[2] / "tools/visualize_json_results.py")


@pytest.fixture
def run(digits_root, tmp_path, monkeypatch):
    """Runs the script with the true instances of digits_instance_val as its results."""
    category = {
        index: key
        for key, index in MetadataCatalog.get("digits_instance_val").thing_dataset_id_to_contiguous_id.items()
    }
    results = [
        {
            "image_id": record["image_id"],
            "category_id": category[entry["category_id"]],
            "score": 0.7,
            "segmentation": encode_rle(decode_segmentations([entry["segmentation"]], (96, 96))[0]),
        }
        for record in DatasetCatalog.get("digits_instance_val")
        for entry in record["annotations"]
    ]
    path = tmp_path / "coco_instances_results.json"
    path.write_text(json.dumps(results))

    def run(*options: object, dataset: str = "digits_instance_val", source: Path = path) -> None:
        arguments = ["--input", source, "--dataset", dataset, "--output", tmp_path / "drawn", *options]
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
        runpy.run_path(SCRIPT, run_name="__main__")

    return run


def test_every_picture_is_drawn_and_none_overwritten(run, tmp_path, capsys):
    run()
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [f"{number:06d}.png" for number in range(4)]
    assert "4 pictures in " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="are not overwritten"):
        run()


def test_some_pictures_are_spread_over_all(run, tmp_path):
    run("--num", "2", "--conf-threshold", "0.9")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["000000.png", "000003.png"]


def test_a_threshold_for_results_without_scores_is_said_to_have_no_effect(run, tmp_path, capsys):
    record = DatasetCatalog.get("digits_semantic_val")[0]
    labels = read_class_map(record["sem_seg_file_name"])
    path = tmp_path / "sem_seg_predictions.json"
    entry = {"file_name": record["file_name"], "category_id": 10, "segmentation": encode_rle(labels == 10)}
    path.write_text(json.dumps([entry]))
    run("--conf-threshold", "0.9", dataset="digits_semantic_val", source=path)
    assert "--conf-threshold has no effect: semantic results have no scores" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["000000.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "digits_instance_vall"}, r"--dataset: data set 'digits_instance_vall' is not registered"),
        ({"source": "absent.json"}, r"result file 'absent\.json' does not exist"),
        ({"source": SCRIPT}, r"visualize_json_results\.py cannot be used"),
    ],
)
def test_mistakes_are_one_sentence(run, change, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        run(**change)
    assert str(stopped.value).startswith("visualize_json_results.py: error: ")
    assert "\n" not in str(stopped.value)
