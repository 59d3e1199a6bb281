"""The runtime: checkpoints in, typed results out, equal to what the model gives in evaluation."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mask2former.config import load_config
from mask2former.deploy import load, segmentation_of
from mask2former.deploy.predictor import Predictor

WEIGHTS = "weights/digits_panoptic.safetensors"


@pytest.fixture(scope="module")
def segmenter():
    return load(WEIGHTS)


def picture(height=70, width=90, seed=0):
    """Discs on a ramp: the model knows neither, but finds something."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows + 40, columns + 30, rows + columns], axis=-1)
    for _ in range(3):
        y, x, radius = generator.integers(15, 60, 3)
        image[(rows - y) ** 2 + (columns - x) ** 2 < (radius / 3) ** 2] = generator.integers(0, 256, 3)
    return image.clip(0, 255).astype(np.uint8)


def test_classes_and_tasks_are_those_of_the_config(segmenter):
    assert segmenter.tasks == ("panoptic", "instance", "semantic")
    assert len(segmenter.classes) == 13 and sum(info.is_thing for info in segmenter.classes) == 10
    description = json.loads(json.dumps(segmenter.description))
    assert description["format"] == "eager" and description["thresholds"]["overlap_threshold"] == 0.8
    assert len(description["weights_sha256"]) == 64


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_one_task_alone_gives_what_the_whole_model_gives(segmenter, task):
    cfg = load_config("configs/digits/panoptic.yaml", ["MODEL.WEIGHTS", WEIGHTS])
    image = picture()
    expected = segmentation_of(Predictor.from_config(cfg)(image), task, segmenter.classes)
    result = segmenter(image, task)
    assert [replaced(segment) for segment in result.segments] == [replaced(segment) for segment in expected.segments]
    assert [segment.score for segment in result.segments] == pytest.approx(
        [segment.score for segment in expected.segments], abs=1e-5
    )
    if expected.label_map is not None:
        np.testing.assert_array_equal(result.label_map, expected.label_map)


def replaced(segment):
    return segment.category, segment.box, segment.mask["counts"]


def test_the_first_task_is_done_where_none_is_asked_for(segmenter):
    result = segmenter(picture())
    assert (result.task, result.height, result.width) == ("panoptic", 70, 90)


def test_a_batch_gives_what_single_calls_give(segmenter):
    pictures = [picture(seed=1), picture(50, 120, seed=2), picture(seed=3)]
    for together, image in zip(segmenter(pictures, "semantic"), pictures, strict=True):
        alone = segmenter(image, "semantic")
        assert (together.label_map != alone.label_map).mean() < 1e-3
        np.testing.assert_allclose(together.confidence, alone.confidence, atol=1e-3)
    assert segmenter([]) == []


def test_threads_do_not_disturb_each_other(segmenter):
    tasks = ["panoptic", "semantic", "instance", "panoptic"]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda task: segmenter(picture(), task), tasks))
    assert [result.task for result in results] == tasks
    assert results[0].segments == results[3].segments


def test_a_task_that_the_model_cannot_do_is_refused(tmp_path):
    only_semantic = ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False", "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "False"]
    segmenter = load(WEIGHTS, overrides=only_semantic)
    assert segmenter.tasks == ("semantic",)
    with pytest.raises(ValueError, match="'panoptic'; choose from semantic"):
        segmenter(picture(), "panoptic")


def test_the_config_is_found_beside_the_checkpoint_or_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.pth' does not exist"):
        load(tmp_path / "gone.pth")
    weights = tmp_path / "model.safetensors"
    shutil.copy(WEIGHTS, weights)
    with pytest.raises(FileNotFoundError, match="pass config_file, or put model.config.yaml or config.yaml beside it"):
        load(weights)
    shutil.copy("weights/digits_panoptic.config.yaml", tmp_path / "config.yaml")
    beside, given = load(weights), load(weights, config_file="configs/digits/panoptic.yaml", device="cpu")
    assert beside.description["weights_sha256"] == given.description["weights_sha256"]
