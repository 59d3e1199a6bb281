"""Evaluation without training, also with test-time augmentation and of several datasets."""

from __future__ import annotations

import json

import pytest
import torch

from mask2former.engine import Trainer, evaluate
from tests.engine.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("digits_root")
AUGMENTED = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": (64, 80), "TEST__AUG__FLIP": False}


@pytest.mark.parametrize(
    ("task", "figures"),
    [
        ("semantic", {"sem_seg": "mIoU"}),
        ("instance", {"segm": "AP"}),
        ("panoptic", {"panoptic_seg": "PQ", "segm": "AP", "sem_seg": "mIoU"}),
    ],
)
def test_test_time_augmentation_adds_its_own_figures_of_every_task(tmp_path, task, figures):
    results = evaluate(tiny_config(tmp_path, task, **AUGMENTED))
    written = json.loads((tmp_path / "inference_TTA" / "metrics.json").read_text())[f"digits_{task}_val"]
    assert set(written) == {name for name in results if name.endswith("_TTA")}
    for name, metric in figures.items():
        assert name in results
        assert written[f"{name}_TTA"][metric] == pytest.approx(results[f"{name}_TTA"][metric])


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_augmentation_of_one_copy_at_the_test_size_changes_nothing(tmp_path, task):
    one_copy = {**AUGMENTED, "TEST__AUG__MIN_SIZES": (64,)}
    results = evaluate(tiny_config(tmp_path, task, **one_copy))
    plain = [name for name in results if not name.endswith("_TTA")]
    assert len(results) == 2 * len(plain)
    for name in plain:
        assert results[f"{name}_TTA"] == pytest.approx(results[name], nan_ok=True)


def test_batches_change_no_figure_and_not_the_order_of_results(tmp_path):
    def run(batch_size):
        torch.manual_seed(0)  # the same random weights
        return evaluate(tiny_config(tmp_path / str(batch_size), TEST__IMS_PER_BATCH=batch_size))

    single, batched = run(1), run(3)
    for task, figures in single.items():
        assert batched[task] == pytest.approx(figures, abs=0.05, nan_ok=True)  # rounding may turn a pixel over
    for name, key in (("sem_seg_predictions", "file_name"), ("coco_instances_results", "image_id")):
        one, three = (json.loads((tmp_path / n / "inference" / f"{name}.json").read_text()) for n in ("1", "3"))
        assert list(dict.fromkeys(e[key] for e in one)) == list(dict.fromkeys(e[key] for e in three))


def test_results_of_several_datasets_are_kept_apart(tmp_path):
    names = ("digits_panoptic_val", "digits_semantic_val")
    switches = {f"MODEL__MASK_FORMER__TEST__{task}_ON": False for task in ("INSTANCE", "PANOPTIC")}
    results = evaluate(tiny_config(tmp_path, DATASETS__TEST=names, **switches, **AUGMENTED))
    for name in names:
        assert list(results[name]) == ["sem_seg", "sem_seg_TTA"]
    assert set(json.loads((tmp_path / "inference" / "metrics.json").read_text())) == set(names)


def test_resume_evaluates_the_last_checkpoint_and_else_the_named_weights(tmp_path, caplog):
    run = tmp_path / "run"
    settings = {"SOLVER__BASE_LR": 0.01, "SOLVER__WARMUP_ITERS": 0}
    trained = Trainer(tiny_config(run, "semantic", **settings)).train()["sem_seg"]
    weights = str(run / "model_final.pth")
    for folder, resume in ((tmp_path / "other", False), (run, True)):
        caplog.clear()
        with caplog.at_level("INFO"):
            named = "" if resume else weights
            results = evaluate(tiny_config(folder, "semantic", MODEL__WEIGHTS=named), resume=resume)
        assert f"Weights from {weights}:" in caplog.text
        assert results["sem_seg"] == pytest.approx(trained, nan_ok=True)


def test_expected_results_that_are_missed_end_with_an_error(tmp_path):
    cfg = tiny_config(tmp_path, "semantic", TEST__EXPECTED_RESULTS=[["sem_seg", "mIoU", 99.0, 0.1]])
    with pytest.raises(SystemExit):
        evaluate(cfg)


def test_all_datasets_are_opened_before_the_first_one_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(FileNotFoundError, match="data set 'coco_2017_val_panoptic'"):
        evaluate(tiny_config(tmp_path, DATASETS__TEST=("digits_panoptic_val", "coco_2017_val_panoptic")))


def test_an_evaluation_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        evaluate(tiny_config(tmp_path, DATASETS__TEST=()))
