"""Clips: which frames they hold, that all frames change alike, and what becomes of objects that come and go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.projects.deeplab import add_deeplab_config
from PIL import Image

from mask2former.config import add_maskformer2_config
from mask2former.data.dataset_mappers import (
    ClipMapper,
    CocoClipDatasetMapper,
    JointClipDatasetMapper,
    YTVISDatasetMapper,
)
from mask2former.data.dataset_mappers.clip import draw_frames
from mask2former.data.reading import BrokenSampleError

SIZE = (40, 60)
NUM_CLASSES = 4


def make_config(**changes):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    settings = {
        "INPUT.MIN_SIZE_TRAIN": (20, 40, 80),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice_by_clip",
        "INPUT.RANDOM_FLIP": "flip_by_clip",
        "INPUT.CROP.TYPE": "absolute_range",
        "INPUT.CROP.SIZE": [20, 35],
        "INPUT.FORMAT": "RGB",
        "INPUT.SAMPLING_FRAME_NUM": 3,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    return cfg


def box_at(left: int) -> list[list[float]]:
    return [[left, 10, left + 10, 10, left + 10, 30, left, 30]]


@pytest.fixture
def record(tmp_path):
    """Six equal frames; object 7 is seen in all of them at one place, object 9 in the first three, 8 is a crowd."""
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    names = [str(tmp_path / f"{index}.png") for index in range(6)]
    for name in names:
        Image.fromarray(pixels).save(name)
    frames = []
    for index in range(6):
        objects = [{"id": 7, "category_id": 2, "iscrowd": 0, "segmentation": box_at(5)}]
        objects += [{"id": 9, "category_id": 1, "iscrowd": 0, "segmentation": box_at(30)}] if index < 3 else []
        objects += [{"id": 8, "category_id": 3, "iscrowd": 1, "segmentation": box_at(45)}]
        frames.append(objects)
    return {
        "file_names": names,
        "height": SIZE[0],
        "width": SIZE[1],
        "length": 6,
        "video_id": 5,
        "annotations": frames,
    }


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("with_replacement", [False, True])
def test_a_clip_holds_a_frame_and_others_near_it(shuffle, with_replacement) -> None:
    np.random.seed(0)
    seen, was_sorted, had_twice = set(), [], []
    for _ in range(300):
        frames = draw_frames(30, 4, frame_range=3, with_replacement=with_replacement, shuffle=shuffle)
        assert len(frames) == 4 and max(frames) - min(frames) <= 6
        seen.update(frames)
        was_sorted.append(frames == sorted(frames))
        had_twice.append(len(set(frames)) < 4)
    assert seen == set(range(30))
    assert all(was_sorted) == (not shuffle)
    assert any(had_twice) == with_replacement


def test_videos_shorter_than_a_clip_repeat_their_frames() -> None:
    assert draw_frames(1, 3, frame_range=20, with_replacement=False, shuffle=False) == [0, 0, 0]
    frames = draw_frames(2, 4, frame_range=20, with_replacement=False, shuffle=False)
    assert len(frames) == 4 and set(frames) == {0, 1}


@pytest.mark.parametrize("augmentation", [None, "brightness", "contrast", "saturation", "rotation"])
@pytest.mark.parametrize("is_cropped", [False, True])
def test_all_frames_of_a_clip_change_alike(record, augmentation, is_cropped) -> None:
    cfg = make_config(INPUT__AUGMENTATIONS=[augmentation] if augmentation else [], INPUT__CROP__ENABLED=is_cropped)
    mapper = YTVISDatasetMapper(cfg, True)
    np.random.seed(3)
    shapes = set()
    for _ in range(6):
        sample = mapper(record)
        first, *others = sample["image"]
        assert all(torch.equal(frame, first) for frame in others)  # the frames of this video are equal
        assert sample["instances"].gt_masks.shape[1:] == (3, *first.shape[1:])
        shapes.add(first.shape)
        for identifier, masks_Thw in zip(sample["instances"].gt_ids, sample["instances"].gt_masks, strict=True):
            if identifier == 7:
                assert all(torch.equal(mask, masks_Thw[0]) for mask in masks_Thw)
    assert len(shapes) > 1


def test_objects_keep_their_place_in_every_frame_and_crowds_are_left_out(record, monkeypatch) -> None:
    monkeypatch.setattr("mask2former.data.dataset_mappers.clip.draw_frames", lambda *_, **__: [1, 2, 4])
    mapper = YTVISDatasetMapper(
        augmentations=[T.NoOpTransform()], image_format="RGB", num_classes=NUM_CLASSES, num_frames=3
    )
    sample = mapper(record)
    assert sample["frame_indices"] == [1, 2, 4] and "annotations" not in sample
    instances = sample["instances"]
    assert instances.gt_ids.tolist() == [7, 9]
    assert [[int(mask.sum()) for mask in masks] for masks in instances.gt_masks] == [[200, 200, 200], [200, 200, 0]]
    assert instances.gt_masks[0, 0, 10:30, 5:15].all() and instances.gt_masks[1, 1, 10:30, 30:40].all()
    # Object 9 is not in the last frame: as published it counts as "no object".
    assert instances.gt_classes.tolist() == [2, NUM_CLASSES]
    mapper.clip_labels = "any_frame"
    assert mapper(record)["instances"].gt_classes.tolist() == [2, 1]


def test_objects_that_are_in_no_sampled_frame_are_no_targets(record, monkeypatch) -> None:
    monkeypatch.setattr("mask2former.data.dataset_mappers.clip.draw_frames", lambda *_, **__: [4, 5, 5])
    sample = YTVISDatasetMapper(make_config(), True)(record)
    assert sample["instances"].gt_ids.tolist() == [7]
    empty = {**record, "annotations": [[] for _ in range(6)]}
    assert len(YTVISDatasetMapper(make_config(), True)(empty)["instances"]) == 0


def test_a_test_gets_all_frames_in_order_resized_alike(record) -> None:
    sample = ClipMapper(make_config(INPUT__MIN_SIZE_TEST=20), False)(record)
    assert [frame.shape for frame in sample["image"]] == [(3, 20, 30)] * 6
    assert (sample["height"], sample["width"], sample["video_id"]) == (40, 60, 5)
    assert "annotations" not in sample and "instances" not in sample


@pytest.fixture
def picture(record):
    """The first frame of the video alone."""
    return {
        "file_name": record["file_names"][0],
        "height": SIZE[0],
        "width": SIZE[1],
        "image_id": 3,
        "annotations": record["annotations"][0],
    }


def test_a_picture_becomes_a_clip_whose_frames_differ(picture) -> None:
    np.random.seed(1)
    sample = CocoClipDatasetMapper(make_config(), True)(picture)
    assert len(sample["image"]) == 3 and len({frame.shape for frame in sample["image"]}) == 1
    assert not all(torch.equal(frame, sample["image"][0]) for frame in sample["image"])
    assert sample["instances"].gt_ids.tolist() == [0, 1] and sample["instances"].gt_classes.tolist() == [2, 1]
    assert sample["instances"].gt_masks.flatten(2).any(dim=2).all()


def test_videos_and_pictures_go_to_the_mapper_of_their_kind(record, picture) -> None:
    cfg = make_config()
    joint = JointClipDatasetMapper(cfg, True)
    for sample, mapper in ((record, YTVISDatasetMapper(cfg, True)), (picture, CocoClipDatasetMapper(cfg, True))):
        np.random.seed(2)
        expected = mapper(sample)
        np.random.seed(2)
        found = joint(sample)
        assert found.keys() == expected.keys()
        assert all(torch.equal(*frames) for frames in zip(found["image"], expected["image"], strict=True))
        assert torch.equal(found["instances"].gt_masks, expected["instances"].gt_masks)


def test_a_record_of_the_other_kind_is_told_the_mapper_that_takes_both(record, picture) -> None:
    with pytest.raises(ValueError, match=r"0\.png is a picture, .* choose 'joint_clip'"):
        YTVISDatasetMapper(make_config(), True)(picture)
    with pytest.raises(ValueError, match=r"video 5 is no picture, .* choose 'joint_clip'"):
        CocoClipDatasetMapper(make_config(), True)(record)


def test_frames_of_another_size_missing_frames_and_empty_videos_are_named(record, tmp_path) -> None:
    mapper = ClipMapper(make_config(), False)
    Image.fromarray(np.zeros((30, 60, 3), dtype=np.uint8)).save(record["file_names"][4])
    with pytest.raises(BrokenSampleError, match=r"4\.png"):
        mapper(record)
    with pytest.raises(BrokenSampleError, match=r"absent\.png"):
        mapper({**record, "file_names": [str(tmp_path / "absent.png")]})
    for broken in (mapper, YTVISDatasetMapper(make_config(), True)):
        with pytest.raises(BrokenSampleError, match="video 5 has no frames"):
            broken({**record, "file_names": [], "annotations": []})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.CLIP_LABELS", "first_frame", "INPUT.CLIP_LABELS='first_frame' is unknown; choose from last_frame"),
        ("INPUT.SAMPLING_FRAME_NUM", 0, "INPUT.SAMPLING_FRAME_NUM must be at least 1, got 0"),
        ("INPUT.AUGMENTATIONS", ["hue"], "INPUT.AUGMENTATIONS names 'hue', which is unknown; choose from brightness"),
    ],
)
def test_settings_that_mean_nothing_are_refused(key, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        YTVISDatasetMapper(make_config(**{key.replace(".", "__"): value}), True)
