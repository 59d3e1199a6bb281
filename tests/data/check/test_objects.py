"""Planted defects of polygons, run lengths, boxes and classes, in COCO's, Cityscapes' and YouTube-VIS' layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.data.check import check_dataset
from mask2former.data.check.objects import run_length_counts
from mask2former.data.masks import encode_rle
from tests.data.check.own import problems, registered
from tests.data.datasets.trees import write_cityscapes, write_json

SIZE = (20, 30)
SQUARE = [[2, 2, 9, 2, 9, 9, 2, 9]]
RUNS = encode_rle(np.eye(*SIZE, dtype=bool))


@pytest.fixture
def check(tmp_path):
    """Checks one picture with one sound object, and one with `entries` in its place."""

    def check(**entries) -> dict:
        path = tmp_path / "scene.png"
        Image.new("RGB", SIZE[::-1]).save(path)
        sound = {"category_id": 1, "bbox": [2, 2, 7, 7], "bbox_mode": BoxMode.XYWH_ABS, "segmentation": SQUARE}
        changed = {key: value for key, value in {**sound, **entries}.items() if value is not None}
        record = {"file_name": str(path), "height": SIZE[0], "width": SIZE[1], "annotations": [sound, changed]}
        with registered("objects", [record], thing_classes=["cat", "dog"]) as name:
            return problems(check_dataset(name))

    return check


@pytest.mark.parametrize("shape", [SQUARE, SQUARE * 2, RUNS, {"size": [20, 30], "counts": [100, 7, 493]}])
def test_sound_objects_have_no_problem(check, shape):
    assert check(segmentation=shape) == {}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, float("nan"), 4, 5, 6]], "no numbers"),
        (encode_rle(np.eye(30, 20, dtype=bool)), "(30, 20) for a picture of (20, 30)"),
        ({**RUNS, "counts": RUNS["counts"][:-4]}, "for a mask of 20 x 30"),
        ({**RUNS, "counts": "o"}, "inside a number"),
        ({**RUNS, "counts": "~"}, "have the character '~'"),
        ({"size": [20, 30], "counts": [100, 7]}, "run lengths of 107 pixels for a mask of 20 x 30"),
        ("a text", "polygons or RLE"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_named(check, shape, message):
    ((kind, (count, (example,))),) = check(segmentation=shape).items()
    assert (kind, count) == ("BAD_SHAPE", 1)
    assert "scene.png: object 1: " in example and message in example


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ({"segmentation": None}, "NO_SHAPE"),
        ({"segmentation": []}, "NO_SHAPE"),
        ({"segmentation": [[40, 40, 50, 40, 50, 50]]}, "EMPTY_MASK"),
        ({"segmentation": encode_rle(np.zeros(SIZE, dtype=bool))}, "EMPTY_MASK"),
        ({"bbox": [2, 2, 0, 7]}, "BAD_BOX"),
        ({"bbox": [5, 2, 5, 7], "bbox_mode": BoxMode.XYXY_ABS}, "BAD_BOX"),
        ({"category_id": 2}, "UNKNOWN_CLASS"),
        ({"category_id": None}, "BROKEN_RECORD"),
    ],
)
def test_other_defects_of_an_object_are_named(check, entries, kind):
    ((found, (count, (example,))),) = check(**entries).items()
    assert (found, count) == (kind, 1) and "scene.png" in example


def test_a_box_of_two_corners_has_an_extent(check):
    assert check(bbox=[5, 2, 6, 7], bbox_mode=BoxMode.XYXY_ABS) == {}


def test_lengths_are_read_as_they_were_written():
    mask = np.random.default_rng(0).random((40, 50)) < 0.3
    lengths = run_length_counts(encode_rle(mask)["counts"])
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False)).tolist()
    assert np.cumsum(lengths).tolist()[:-1] == edges
    long = {"size": [3000, 4000], "counts": [5_000_000, 1, 6_999_990, 9]}
    assert run_length_counts(coco_mask.frPyObjects(long, 3000, 4000)["counts"]) == long["counts"]


@pytest.fixture
def edit_file(digits):
    """Changes the COCO file of the digit discs and checks them."""

    def edit(change) -> dict:
        path = digits / "annotations/instances_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return problems(check_dataset("digits_instance_train"))

    return edit


def test_a_polygon_that_the_loader_leaves_out_is_named(edit_file):
    found = edit_file(lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3, 4]]))
    assert found["DROPPED_OBJECT"] == (1, ["000000.png: annotation 1"]) and len(found) == 1


def test_an_annotation_of_a_picture_that_is_not_listed_is_named(edit_file):
    found = edit_file(lambda content: content["annotations"][0].update(image_id=4711))
    assert found["STRAY_ANNOTATION"] == (1, ["annotation 1 of picture 4711"])


def test_repeated_ids_are_named_although_the_loader_stops_at_them(edit_file):
    def repeat(content):
        content["annotations"].append(dict(content["annotations"][0]))
        content["images"].append(dict(content["images"][2]))

    found = edit_file(repeat)
    assert found["REPEATED_ANNOTATION_ID"] == (1, ["annotation 1 (2 times)"])
    assert found["REPEATED_IMAGE_ID"] == (1, ["id 2 (2 times)"])
    assert "not unique" in found["NOT_LOADED"][1][0]


def test_an_unknown_category_is_named_although_the_loader_stops_at_it(edit_file):
    found = edit_file(lambda content: content["annotations"][1].update(category_id=99))
    assert found["UNKNOWN_CLASS"][0] == 1 and "annotation 2: category 99" in found["UNKNOWN_CLASS"][1][0]
    assert "NOT_LOADED" in found


def test_a_picture_without_objects_is_a_warning(edit_file):
    def clear(content):
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 2]

    ((kind, (count, (example,))),) = edit_file(clear).items()
    assert (kind, count) == ("NO_LABELS", 1) and example.endswith("train/000002.png")


def test_cityscapes_in_its_official_layout(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_cityscapes(tmp_path)
    first, second = sorted((tmp_path / "cityscapes/leftImg8bit/train").rglob("*.png"))
    Image.new("RGB", (32, 24)).save(first)
    checked = check_dataset("cityscapes_fine_instance_seg_train")
    assert problems(checked)["UNREADABLE_FILE"][0] == 1 and str(second) in problems(checked)["UNREADABLE_FILE"][1][0]
    assert set(problems(checked)) == {"UNREADABLE_FILE"}
    assert checked.tally.classes["instance"].num_crowds == 2


def write_videos(root, **track) -> None:
    """ytvis_2019_train: two videos of two frames; the second has an object."""
    videos = []
    for number, name in enumerate(("ab", "cd"), start=1):
        names = [f"{name}/0000{frame}.png" for frame in range(2)]
        for file_name in names:
            path = root / "ytvis_2019/train/JPEGImages" / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4)).save(path)
        videos.append({"id": number, "file_names": names, "height": 4, "width": 6, "length": 2})
    shape = [[0, 0, 2, 0, 2, 2, 0, 2]]
    sound = {"id": 1, "video_id": 2, "category_id": 40, "segmentations": [shape, None], "bboxes": [[0, 0, 2, 2], None]}
    write_json(root / "ytvis_2019/train.json", {"videos": videos, "annotations": [{**sound, **track}]})


@pytest.fixture
def videos(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_videos(tmp_path)
    return tmp_path


def test_frames_of_videos_are_looked_at_one_by_one(videos):
    frames = videos / "ytvis_2019/train/JPEGImages"
    (frames / "cd/00001.png").unlink()
    Image.new("RGB", (6, 5)).save(frames / "ab/00001.png")
    checked = check_dataset("ytvis_2019_train")
    found = problems(checked)
    assert found["MISSING_FILE"] == (1, [str(frames / "cd/00001.png")])
    assert found["PICTURE_SIZE"][0] == 1
    assert found["NO_LABELS"] == (1, [str(frames / "ab/00000.png")])  # the first video, of which no frame has an object
    assert (checked.num_checked, checked.tally.num_pictures, checked.tally.num_readable) == (2, 4, 3)
    assert checked.tally.classes["instance"].pixels == {39: 4}


@pytest.mark.parametrize(
    ("track", "kind", "example"),
    [
        ({"segmentations": [None]}, "FRAME_COUNT", "object 1 of video 2: 1 segmentations and 2 boxes for 2 frames"),
        ({"category_id": 41}, "UNKNOWN_CLASS", "object 1 of video 2: category 41"),
        ({"video_id": 7}, "STRAY_ANNOTATION", "object 1 of video 7"),
    ],
)
def test_mistakes_in_files_of_videos_are_named(videos, track, kind, example):
    write_videos(videos, **track)
    found = problems(check_dataset("ytvis_2019_train"))
    assert found[kind] == (1, [example]) and found["NOT_LOADED"][0] == 1


def test_lists_of_a_clip_must_have_one_length(videos):
    names = [str(path) for path in sorted((videos / "ytvis_2019/train/JPEGImages/ab").glob("*.png"))]
    clip = {"file_names": names, "length": 2, "height": 4, "width": 6, "annotations": [[]]}
    with registered("clips", [clip], thing_classes=["cat"]) as name:
        found = problems(check_dataset(name))
    assert found["FRAME_COUNT"] == (1, [f"{names[0]}: 2 file_names, 2 length, 1 annotations"])
