"""Drawings of training samples: every mapper's targets, the padding, and pictures of either channel order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from mask2former.data.drawing import draw_record, draw_sample, draw_truth, spread
from mask2former.data.record_lists import load_records
from mask2former.engine.training_data import draw_annotations, draw_samples
from mask2former.visualization import enlarge
from tests.engine.tiny import tiny_config

MAPPERS = {
    "mask_former_semantic": "semantic",
    "mask_former_panoptic": "panoptic",
    "mask_former_instance": "instance",
    "coco_instance_lsj": "instance",
    "coco_panoptic_lsj": "panoptic",
}
SIDE = 320  # a panel of 64 pixels is drawn five times as large


def panels(drawing: np.ndarray) -> list[np.ndarray]:
    """The pictures of a strip without their captions."""
    count = drawing.shape[1] // SIDE
    gap = (drawing.shape[1] - count * SIDE) // max(1, count - 1)
    return [drawing[-SIDE:, number * (SIDE + gap) :][:, :SIDE] for number in range(count)]


@pytest.mark.parametrize("mapper", MAPPERS)
def test_samples_of_every_mapper_are_drawn(digits_root, tmp_path, mapper):
    changes = {"INPUT__DATASET_MAPPER_NAME": mapper, "INPUT__IMAGE_SIZE": 64, "INPUT__MAX_SIZE_TRAIN": 64}
    cfg = tiny_config(tmp_path, MAPPERS[mapper], **changes)
    drawn = list(draw_samples(cfg, 3))
    assert len(drawn) == 3 and all(len(name) == 6 for name, _ in drawn)
    for _, drawing in drawn:
        image, targets, *semantic = panels(drawing)
        assert image.shape == targets.shape == (SIDE, SIDE, 3)
        assert (image != targets).any()
        # Of the semantic labels that the other panoptic mapper reads, a crop takes its share.
        assert len(semantic) == (mapper in ("mask_former_semantic", "mask_former_panoptic"))


def test_the_same_seed_gives_the_same_samples(digits_root, tmp_path):
    first, again, other = (
        list(draw_samples(tiny_config(tmp_path, INPUT__MAX_SIZE_TRAIN=64, SEED=seed), 3)) for seed in (1, 1, 2)
    )
    for (name, drawing), (name_again, drawing_again) in zip(first, again, strict=True):
        assert name == name_again and np.array_equal(drawing, drawing_again)
    assert any(name != other_name for (name, _), (other_name, _) in zip(first, other, strict=True))


def test_annotations_are_spread_over_the_data_set(digits_root, tmp_path):
    assert [name for name, _ in draw_annotations(tiny_config(tmp_path), 2)] == ["000000", "000007"]


@pytest.fixture
def metadata():
    metadata = MetadataCatalog.get("drawn samples")
    metadata.set(thing_classes=["cat", "dog"], stuff_classes=["cat", "dog", "sky"])
    yield metadata
    MetadataCatalog.pop("drawn samples")


def sample(**entries) -> dict:
    """64 x 64 pixels, of which the lower half is padding; a dog in the upper left corner."""
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    image[0, :32] = 200
    instances = Instances((64, 64))
    instances.gt_classes = torch.tensor([1])
    instances.gt_masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    instances.gt_masks[:, :16, :16] = True
    return {"image": image, "instances": instances, **entries}


def test_the_padding_is_part_of_the_drawing(metadata):
    image, targets = panels(draw_sample(sample(), metadata, "RGB"))
    assert (image[170:] == 128).all() and (targets[170:] == 128).all()
    assert (image[:150] == [200, 128, 128]).all()
    assert (targets[:80, :80] != image[:80, :80]).any(-1).mean() > 0.9


def test_channels_are_shown_in_the_right_order(metadata):
    image, _ = panels(draw_sample(sample(), metadata, "BGR"))
    assert (image[:150] == [128, 128, 200]).all()
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT='L'"):
        draw_sample(sample(), metadata, "L")


def test_semantic_labels_and_panoptic_segments_have_their_panels(metadata):
    labels = torch.full((64, 64), 255)
    labels[:16, :16] = 1
    semantic = panels(draw_sample(sample(sem_seg=labels), metadata, "RGB"))
    assert len(semantic) == 3 and np.array_equal(semantic[1], semantic[2])
    info = [{"id": 5, "category_id": 1, "isthing": True}]
    panoptic = panels(draw_sample(sample(segments_info=info), metadata, "RGB"))
    assert len(panoptic) == 2 and (panoptic[1] != semantic[1]).any()  # things have a box


def test_a_sample_without_labels_is_its_picture(metadata):
    (image,) = panels(draw_sample({"image": sample()["image"]}, metadata, "RGB"))
    assert image.shape == (SIDE, SIDE, 3)


def test_a_clip_is_drawn_frame_by_frame_and_named_after_its_video(digits_video_root, tmp_path):
    changes = {"INPUT__CROP__ENABLED": False, "INPUT__MIN_SIZE_TRAIN": (64,), "INPUT__SAMPLING_FRAME_NUM": 3}
    cfg = tiny_config(tmp_path, "video", **changes)
    drawn = dict(draw_samples(cfg, 4))
    assert set(drawn) == {f"{index:06d}" for index in range(4)}
    for drawing in drawn.values():
        frames = panels(drawing)
        assert len(frames) == 3 and (frames[0] != frames[1]).any()
    assert [name for name, _ in draw_annotations(cfg, 2)] == ["000000", "000003"]


def test_the_form_of_labels_can_be_chosen(digits_root):
    record = load_records(["digits_panoptic_val"], config_key="DATASETS.TEST")[0]
    metadata = MetadataCatalog.get("digits_panoptic_val")
    image = np.zeros((record["height"], record["width"], 3), dtype=np.uint8)
    semantic = draw_truth(image, record, metadata, form="sem_seg_file_name")
    assert (semantic != draw_truth(image, record, metadata)).any()
    # A form that a record lacks leaves the choice to the others.
    assert np.array_equal(draw_truth(image, record, metadata, form="annotations"), draw_truth(image, record, metadata))
    height = enlarge(image).shape[0]
    assert draw_record(record, metadata)[-height:].shape[1] > 2 * height


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (9, [0, 1, 2, 3, 4])])
def test_items_are_spread(count, expected):
    assert spread(range(5), count) == expected
