"""Cityscapes' own metrics: those of the official scripts, alone, combined, and in two processes."""

from __future__ import annotations

import json
import logging
import sys

import detectron2.evaluation
import pytest
import torch
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling
from PIL import Image

from mask2former.evaluation import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from tests.evaluation.scenes import SIZE, inputs_of, output_of, run
from tests.evaluation.street import STREET, evaluate_street, register_street, street_predictions


@pytest.fixture
def street(tmp_path):
    # The roots of people have dots and brackets.
    return register_street("street", tmp_path / "v1.0 [fine]" / "cityscapes", "cityscapes_panoptic_seg")


def test_perfect_predictions_get_100(street, capfd):
    dataset, scenes = street
    results = run(CityscapesSemanticEvaluator(dataset), scenes, scenes, len(STREET))
    assert results == {"sem_seg": pytest.approx(dict.fromkeys(["IoU", "iIoU", "IoU_sup", "iIoU_sup"], 100))}
    results = run(CityscapesInstanceEvaluator(dataset), scenes, scenes, len(STREET))
    assert results == {"segm": pytest.approx({"AP": 100, "AP50": 100})}
    assert capfd.readouterr().out == "", "the scripts print nothing past the log"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (CityscapesSemanticEvaluator, detectron2.evaluation.CityscapesSemSegEvaluator),
        (CityscapesInstanceEvaluator, detectron2.evaluation.CityscapesInstanceEvaluator),
    ],
)
def test_figures_are_those_of_the_scripts_when_detectron2_runs_them(ours, theirs, tmp_path, monkeypatch):
    dataset, scenes = register_street("street", tmp_path / "cityscapes", "cityscapes_panoptic_seg")
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    found = run(ours(dataset), scenes, street_predictions(scenes), len(STREET))
    # It cannot write the integers of NumPy 2.
    monkeypatch.setattr(evalInstanceLevelSemanticLabeling, "writeDict2JSON", lambda *_: None)
    assert not list((tmp_path / "working").iterdir()), "nothing is left in the working directory"
    expected = run(theirs(dataset), scenes, street_predictions(scenes), len(STREET))
    assert {task: pytest.approx(dict(figures), abs=1e-9) for task, figures in expected.items()} == found
    assert all(0 < value < 100 for figures in found.values() for value in figures.values())


def test_a_missing_prediction_is_named(street):
    dataset, scenes = street
    with pytest.raises(ValueError, match=f"1 of 4 labeled images of 'street' have no prediction, .* {scenes[3].name}:"):
        run(CityscapesSemanticEvaluator(dataset), scenes[:3], scenes[:3], len(STREET))


def test_a_picture_without_labels_is_named(street):
    dataset, scenes = street
    other = scenes[0]._replace(name="elsewhere_000000_000000")
    with pytest.raises(ValueError, match="elsewhere_000000_000000_leftImg8bit.png has no label file elsewhere_000000_"):
        CityscapesInstanceEvaluator(dataset).process([inputs_of(other)], [output_of(other, len(STREET))])


@pytest.mark.parametrize("kind", [CityscapesSemanticEvaluator, CityscapesInstanceEvaluator])
def test_a_prediction_of_another_size_is_named(street, kind):
    dataset, scenes = street
    evaluator = kind(dataset)
    for scene in scenes:
        output = output_of(scene, len(STREET))
        output["instances"].pred_masks = output["instances"].pred_masks[:, :50]
        evaluator.process([inputs_of(scene)], [{**output, "sem_seg": output["sem_seg"][:, :50]}])
    with pytest.raises(ValueError, match=rf"_gtFine_.*png has \(height, width\) \(50, {SIZE[1]}\), but .* has"):
        evaluator.evaluate()


def test_what_the_scripts_refuse_is_an_exception_with_their_words(street):
    dataset, scenes = street
    path = next(iter(CityscapesSemanticEvaluator(dataset)._true_files.values()))
    Image.new("L", (SIZE[1], SIZE[0]), 77).save(path)  # no label
    with pytest.raises(ValueError, match="cityscapesScripts refuses .*labelIds.png: ERROR: Unknown label with id 77"):
        run(CityscapesSemanticEvaluator(dataset), scenes, scenes, len(STREET))


def test_no_image_gives_no_figures_and_a_warning(street, caplog):
    with caplog.at_level(logging.WARNING):
        assert CityscapesSemanticEvaluator(street[0]).evaluate() == {}
    assert "No image of 'street' was evaluated" in caplog.text


def test_missing_labels_are_named_before_the_model_runs(tmp_path):
    dataset, scenes = register_street("street", tmp_path, "cityscapes_sem_seg")
    for path in tmp_path.rglob("*_labelIds.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"'street' has no label files .*\*_gtFine_labelIds.png"):
        CityscapesSemanticEvaluator(dataset)


def test_without_the_scripts_one_learns_how_to_get_them(street, monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", None)
    with pytest.raises(ImportError, match=r"cityscapesscripts: pip install mask2former\[data\]"):
        CityscapesSemanticEvaluator(street[0])


def test_two_processes_that_share_no_files_get_the_figures_of_one(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    evaluate_street(0, 1, tmp_path / "one")
    torch.multiprocessing.spawn(evaluate_street, args=(2, tmp_path / "two"), nprocs=2)
    expected, found = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert list(found) == ["panoptic_seg", "sem_seg", "segm"]
    for task in found:
        assert found[task] == pytest.approx(expected[task], abs=1e-9)
        assert all(0 < value < 100 for value in found[task].values())
