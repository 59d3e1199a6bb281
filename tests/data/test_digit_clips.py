"""Digits video: reproducible clips in which discs cross, leave and come, written as YouTube-VIS writes its own."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data.datasets.digit_clips import clip_random, sample_clip
from mask2former.data.datasets.digit_clips_writer import DigitClipsSettings, prepare_digit_clips
from mask2former.data.datasets.digits import SPLITS, load_material, scene_random
from mask2former.data.masks import decode_segmentations

SMALL = DigitClipsSettings(num_train=2, num_val=1, num_frames=3, size=48)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sampled(index: int, num_frames: int = 16):
    return sample_clip(load_material("val"), size=96, num_frames=num_frames, random=clip_random(0, "val", index))


@pytest.fixture(scope="module", params=SPLITS)
def annotations(digits_video_root, request) -> dict:
    return json.loads((digits_video_root / "digits_video" / f"{request.param}.json").read_text())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path) -> None:
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        prepare_digit_clips(tmp_path / name, DigitClipsSettings(2, 1, num_frames=3, size=48, seed=seed))
    first, second, other = (all_bytes(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert first["train/JPEGImages/000000/00000.jpg"] != other["train/JPEGImages/000000/00000.jpg"]


def test_clips_are_not_the_scenes_of_the_same_seed() -> None:
    assert clip_random(0, "train", 0).integers(2**31) != scene_random(0, "train", 0).integers(2**31)


def test_an_existing_folder_is_recognized_and_never_replaced_unasked(tmp_path) -> None:
    assert prepare_digit_clips(tmp_path / "clips", SMALL)
    before = all_bytes(tmp_path / "clips")
    assert not prepare_digit_clips(tmp_path / "clips", SMALL)
    with pytest.raises(ValueError, match="was prepared with other settings"):
        prepare_digit_clips(tmp_path / "clips", DigitClipsSettings(1, 1, num_frames=2, size=48))
    assert all_bytes(tmp_path / "clips") == before


def test_discs_move_evenly_and_nothing_else_does_but_the_noise() -> None:
    clip = sampled(0)
    first, second, third = (clip.frame(number) for number in range(3))
    for before, now, after in zip(first.discs, second.discs, third.discs, strict=True):
        steps = np.subtract(now.center, before.center), np.subtract(after.center, now.center)
        assert np.allclose(*steps) and np.hypot(*steps[0]) > 1
        assert (before.radius, before.picture, before.digit) == (after.radius, after.picture, after.digit)
    assert (first.textures, first.line_point) == (third.textures, third.line_point)
    assert first.noise_seed != second.noise_seed


def test_discs_come_leave_and_are_covered(tmp_path) -> None:
    prepare_digit_clips(tmp_path / "clips", DigitClipsSettings(num_train=6, num_val=1))
    tracks = json.loads((tmp_path / "clips" / "train.json").read_text())["annotations"]
    seen = [[area is not None for area in track["areas"]] for track in tracks]
    assert any(not first and last for first, *_, last in seen), "a disc comes into the picture"
    assert any(first and not last for first, *_, last in seen), "a disc leaves it"
    whole = [max(area or 0 for area in track["areas"]) for track in tracks]
    assert any(
        frame is not None and 0 < frame < 0.6 * size and _is_inside(box)
        for track, size in zip(tracks, whole, strict=True)
        for frame, box in zip(track["areas"], track["bboxes"], strict=True)
    ), "a disc is half covered, away from the rim"


def _is_inside(box) -> bool:
    left, top, width, height = box
    return left > 0 and top > 0 and left + width < 96 and top + height < 96


def test_discs_meet_in_most_clips() -> None:
    def meet(clip) -> bool:
        frames = [clip.frame(number).discs for number in range(clip.num_frames)]
        return any(
            np.hypot(*np.subtract(one.center, other.center)) < one.radius + other.radius
            for discs in frames
            for place, one in enumerate(discs)
            for other in discs[:place]
        )

    assert np.mean([meet(sampled(index)) for index in range(40)]) > 0.8


def test_tracks_are_as_long_as_their_videos_and_null_where_the_disc_is_not_seen(annotations) -> None:
    videos = {video["id"]: video for video in annotations["videos"]}
    identifiers = [track["id"] for track in annotations["annotations"]]
    assert identifiers == list(range(1, len(identifiers) + 1))
    for track in annotations["annotations"]:
        video = videos[track["video_id"]]
        assert track["length"] == video["length"] == len(video["file_names"])
        shapes = [track[key] for key in ("segmentations", "bboxes", "areas")]
        assert {len(shape) for shape in shapes} == {video["length"]}
        absent = [[value is None for value in shape] for shape in shapes]
        assert absent[0] == absent[1] == absent[2] and not all(absent[0])


def test_masks_agree_with_boxes_and_areas_and_never_overlap(annotations) -> None:
    for video in annotations["videos"]:
        size = (video["height"], video["width"])
        covered = np.zeros((video["length"], *size), dtype=int)
        for track in annotations["annotations"]:
            if track["video_id"] != video["id"]:
                continue
            for frame, rle in enumerate(track["segmentations"]):
                if rle is None:
                    continue
                assert isinstance(rle["counts"], list), "uncompressed, as in the public files"
                (mask_HW,) = decode_segmentations([rle], size)
                rows, columns = np.nonzero(mask_HW)
                left, top, width, height = track["bboxes"][frame]
                assert track["areas"][frame] == len(rows)
                assert (left, top) == (columns.min(), rows.min())
                assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
                covered[frame] += mask_HW
        assert covered.max() == 1


@pytest.mark.parametrize("split", SPLITS)
def test_the_registered_names_load_and_are_evaluated_as_videos(digits_video_root, split) -> None:
    records = DatasetCatalog.get(f"digits_video_{split}")
    metadata = MetadataCatalog.get(f"digits_video_{split}")
    assert metadata.evaluator_type == "ytvis"
    assert metadata.thing_classes == [f"digit_{digit}" for digit in range(10)]
    assert metadata.thing_dataset_id_to_contiguous_id == {digit + 1: digit for digit in range(10)}
    for record in records:
        assert all(Image.open(name).size == (record["width"], record["height"]) for name in record["file_names"])
        assert {entry["category_id"] for frame in record["annotations"] for entry in frame} <= set(range(10))


def test_missing_clips_name_the_command_that_makes_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    command = rf"python datasets/prepare_digits.py --video --output {tmp_path}/digits_video"
    with pytest.raises(FileNotFoundError, match=command):
        DatasetCatalog.get("digits_video_train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "at least one clip"),
        ({"num_frames": 1}, "nothing moves"),
        ({"size": 8}, "at least 32 pixels"),
        ({"seed": -1}, "seed must be 0"),
    ],
)
def test_impossible_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        DigitClipsSettings(**changes)


def test_the_script_writes_clips_and_says_so(tmp_path, capsys) -> None:
    script = runpy.run_path("datasets/prepare_digits.py")
    numbers = ["--train", "1", "--val", "1", "--size", "32", "--output", str(tmp_path / "clips")]
    for message in ("1 + 1 clips of 2 frames written", "1 + 1 clips of 2 frames already there"):
        script["main"](["--video", "--frames", "2", *numbers])
        assert message in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script["main"](["--frames", "2", *numbers])
    assert "--frames is of clips: add --video" in capsys.readouterr().err
