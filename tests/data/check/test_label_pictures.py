"""Planted defects of pictures, panoptic and semantic labels: each is found once, with its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mask2former.data.check import check_dataset
from mask2former.data.check.label_pictures import count_values
from tests.data.check.own import problems, registered


def edit_picture(path, change) -> None:
    with Image.open(path) as picture:
        pixels = np.array(picture)
    Image.fromarray(change(pixels)).save(path)


def edit_segments(digits, change) -> list[dict]:
    """Applies `change` to the segments of scene 2."""
    path = digits / "annotations/panoptic_train.json"
    content = json.loads(path.read_text())
    segments = content["annotations"][2]["segments_info"]
    change(segments)
    path.write_text(json.dumps(content))
    return segments


def only_problem(name: str) -> tuple[str, int, str]:
    ((kind, (count, examples)),) = problems(check_dataset(name)).items()
    assert len(examples) == 1
    return kind, count, examples[0]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_clean_data_have_no_problem(digits, task, part):
    checked = check_dataset(f"digits_{task}_{part}")
    assert problems(checked) == {} and not checked.has_errors
    assert checked.tally.num_readable == checked.num_checked == (4 if part == "train" else 1)


@pytest.mark.parametrize("folder", ["train", "panoptic_train", "semantic_train"])
@pytest.mark.parametrize("scene", ["000000.png", "000003.png"])
def test_a_missing_file_is_named_also_if_it_is_the_first(digits, folder, scene):
    (digits / folder / scene).unlink()
    assert only_problem("digits_panoptic_train") == ("MISSING_FILE", 1, str(digits / folder / scene))


@pytest.mark.parametrize("folder", ["train", "panoptic_train", "semantic_train"])
def test_a_file_that_is_cut_off_is_named(digits, folder):
    path = digits / folder / "000002.png"
    path.write_bytes(path.read_bytes()[:-40])
    kind, count, example = only_problem("digits_panoptic_train")
    assert (kind, count) == ("UNREADABLE_FILE", 1) and str(path) in example


def test_a_label_picture_in_color_is_no_class_map(digits):
    edit_picture(digits / "semantic_train/000002.png", lambda pixels: np.stack([pixels] * 3, -1))
    kind, count, example = only_problem("digits_semantic_train")
    assert (kind, count) == ("UNREADABLE_FILE", 1) and "000002.png must be a gray" in example


def test_a_picture_of_another_size_than_its_annotation_says_is_named(digits):
    for folder in ("train", "panoptic_train", "semantic_train"):
        edit_picture(digits / folder / "000001.png", lambda pixels: pixels[:40])
    kind, count, example = only_problem("digits_panoptic_train")
    assert (kind, count) == ("PICTURE_SIZE", 1)
    assert "train/000001.png has (height, width) (40, 48), but its annotation has (48, 48)" in example


@pytest.mark.parametrize("folder", ["panoptic_train", "semantic_train"])
def test_labels_of_another_size_than_their_picture_are_named(digits, folder):
    edit_picture(digits / folder / "000001.png", lambda pixels: pixels[:, :40])
    found = problems(check_dataset("digits_panoptic_train"))
    count, (example,) = found["LABEL_SIZE"]
    assert count == 1 and f"{folder}/000001.png has (height, width) (48, 40)" in example


def test_ids_that_the_annotation_does_not_list_are_counted(digits):
    def paint(rgb):
        rgb[0, :5] = [[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0], [0, 0, 0]]  # 0 is void
        return rgb

    edit_picture(digits / "panoptic_train/000001.png", paint)
    kind, count, example = only_problem("digits_panoptic_train")
    assert (kind, count) == ("UNLISTED_ID", 4) and example.endswith("panoptic_train/000001.png: id 1, 2, 3 and 1 more")


def test_a_segment_without_pixels_is_named(digits):
    edit_segments(digits, lambda segments: segments.append({**segments[0], "id": 77}))
    kind, count, example = only_problem("digits_panoptic_train")
    assert (kind, count) == ("ABSENT_ID", 1) and example.endswith("panoptic_train/000002.png: id 77")


def test_an_id_that_is_listed_twice_is_named(digits):
    segments = edit_segments(digits, lambda segments: segments.append(dict(segments[0])))
    kind, count, example = only_problem("digits_panoptic_train")
    assert (kind, count) == ("REPEATED_ID", 1) and example.endswith(f"000002.png: id {segments[0]['id']}")


def test_an_unknown_category_is_named_although_the_loader_stops_at_it(digits):
    segments = edit_segments(digits, lambda segments: segments[0].update(category_id=99))
    checked = check_dataset("digits_panoptic_train")
    assert problems(checked)["UNKNOWN_CLASS"] == (1, [f"000002.png: segment {segments[0]['id']}: category 99"])
    assert "category 99" in problems(checked)["NOT_LOADED"][1][0]
    assert checked.records == [] and checked.has_errors


def test_crowds_are_counted_and_no_void(digits):
    edit_segments(digits, lambda segments: segments[0].update(iscrowd=1))
    tally = check_dataset("digits_panoptic_train").tally
    assert tally.classes["panoptic"].num_crowds == 1
    assert tally.void["panoptic"].mean < 0.05


def test_values_that_are_no_class_are_counted(digits):
    def paint(labels):
        labels[:2, :2] = [[13, 13], [14, 255]]  # there are the classes 0..12, and 255 is void
        return labels

    edit_picture(digits / "semantic_train/000001.png", paint)
    kind, count, example = only_problem("digits_semantic_train")
    assert (kind, count) == ("UNKNOWN_CLASS", 2) and example.endswith("semantic_train/000001.png: class 13, 14")


def test_void_is_measured_and_pictures_with_nothing_else_are_named(digits):
    def half(labels):
        labels[:24] = 255
        return labels

    edit_picture(digits / "semantic_train/000001.png", half)
    edit_picture(digits / "semantic_train/000003.png", lambda labels: np.full_like(labels, 255))
    checked = check_dataset("digits_semantic_train")
    assert problems(checked) == {"ONLY_VOID": (1, [str(digits / "semantic_train/000003.png")])}
    assert not checked.has_errors
    void = checked.tally.void["semantic"]
    assert [(round(share, 2), name[-10:]) for share, name in void.worst[:2]] == [(1, "000003.png"), (0.5, "000001.png")]
    assert void.mean == pytest.approx((1 + 0.5 + sum(share for share, _ in void.worst[2:])) / 4, abs=0.01)


@pytest.mark.parametrize(("values", "is_shifted"), [([1, 2, 3], True), ([0, 2, 3], False), ([1, 2], False)])
def test_labels_that_begin_with_1_are_told_from_other_unknown_ones(tmp_path, values, is_shifted):
    Image.new("RGB", (8, 4)).save(tmp_path / "scene.png")
    Image.fromarray(np.resize(np.uint8(values), (4, 8))).save(tmp_path / "labels.png")
    record = {"file_name": str(tmp_path / "scene.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    with registered("shifted", [record], stuff_classes=["a", "b", "c"]) as name:
        found = problems(check_dataset(name))
    assert ("SHIFTED" in found) == is_shifted
    assert ("UNKNOWN_CLASS" in found) == (3 in values)


def test_classes_are_counted_in_pictures_segments_and_pixels(digits):
    checked = check_dataset("digits_panoptic_train")
    panoptic, semantic = checked.tally.classes["panoptic"], checked.tally.classes["semantic"]
    assert panoptic.pixels == semantic.pixels and panoptic.pictures == semantic.pictures
    assert panoptic.segments.total() >= panoptic.pictures.total()
    assert panoptic.pixels.total() <= 4 * 48 * 48


def test_values_of_a_map_are_counted_as_numpy_counts_them():
    labels = np.random.default_rng(0).integers(0, 5, (7, 9)).astype(np.int32).repeat(3, axis=1)
    expected = np.unique(labels, return_counts=True)
    for found, wanted in zip(count_values(labels), expected, strict=True):
        assert np.array_equal(found, wanted)
