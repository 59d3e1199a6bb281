"""Videos with something wrong, from the file to the loaders: what is said, and what training does without them."""

from __future__ import annotations

import json
import shutil
from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mask2former.config import load_config
from mask2former.data import BrokenSampleError, build_train_loader
from mask2former.data.check.run import check_dataset
from mask2former.data.dataset_mappers import JointClipDatasetMapper
from mask2former.data.evaluation_loader import build_test_loader

NUM_FRAMES = 8  # of every clip of the fixture


@pytest.fixture
def videos(digits_video_root, tmp_path, monkeypatch):
    """The folder of a copy of the clips that a test may break; DETECTRON2_DATASETS points at it."""
    shutil.copytree(digits_video_root / "digits_video", tmp_path / "digits_video")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "digits_video"


def train_loader(*overrides: object):
    settings = ["DATALOADER.NUM_WORKERS", 0, "INPUT.SAMPLING_FRAME_NUM", NUM_FRAMES, *overrides]
    cfg = load_config("configs/digits/video.yaml", settings)
    return build_train_loader(cfg, JointClipDatasetMapper(cfg, True), seed=0)


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_missing_frame_stops_training_with_its_name_and_the_way_out(videos) -> None:
    (videos / "train/JPEGImages/000001/00003.jpg").unlink()
    with pytest.raises(BrokenSampleError, match=r"000001/00003\.jpg does not exist .*DATALOADER\.SKIP_BROKEN True"):
        list(islice(train_loader(), 4))


def test_on_request_training_goes_on_without_the_clips_that_cannot_be_read(videos) -> None:
    (videos / "train/JPEGImages/000001/00003.jpg").unlink()
    loader = train_loader("DATALOADER.SKIP_BROKEN", True)
    seen = {sample["video_id"] for batch in islice(loader, 4) for sample in batch}
    assert seen == {1, 3, 4} and loader.num_skipped > 0


def test_when_no_clip_at_all_can_be_read_training_stops_with_the_name_of_one(videos) -> None:
    for path in (videos / "train/JPEGImages").glob("*/00003.jpg"):
        path.unlink()
    with pytest.raises(BrokenSampleError, match=r"20 samples in a row cannot be read, the last is video \d"):
        next(iter(train_loader("DATALOADER.SKIP_BROKEN", True)))


def test_a_missing_frame_stops_an_evaluation_with_its_name(videos) -> None:
    (videos / "val/JPEGImages/000001/00007.jpg").unlink()
    cfg = load_config("configs/digits/video.yaml", ["DATALOADER.NUM_WORKERS", 0])
    first, second = iter(build_test_loader(cfg, "digits_video_val")), build_test_loader(cfg, "digits_video_val")
    assert len(next(first)[0]["image"]) == NUM_FRAMES
    with pytest.raises(BrokenSampleError, match=r"val/JPEGImages/000001/00007\.jpg does not exist"):
        list(second)


def test_frames_that_were_never_unpacked_are_missed_before_anything_is_built(videos) -> None:
    shutil.rmtree(videos / "train/JPEGImages/000000")
    with pytest.raises(FileNotFoundError, match=r"000000/00000\.jpg does not exist.*prepare_digits\.py --video"):
        DatasetCatalog.get("digits_video_train")


def test_the_check_of_a_data_set_names_frames_that_are_missing_or_of_another_size(videos) -> None:
    (videos / "val/JPEGImages/000000/00002.jpg").unlink()
    Image.fromarray(np.zeros((96, 80, 3), dtype=np.uint8)).save(videos / "val/JPEGImages/000001/00004.jpg")
    checked = check_dataset("digits_video_val")
    said = "\n".join(str(example) for examples in checked.tally.problems.values() for example in examples.examples)
    assert checked.has_errors and "000000/00002.jpg" in said and "000001/00004.jpg" in said


def test_a_frame_of_another_size_is_named_with_both_sizes(videos) -> None:
    Image.fromarray(np.zeros((96, 80, 3), dtype=np.uint8)).save(videos / "train/JPEGImages/000002/00000.jpg")
    with pytest.raises(BrokenSampleError, match=r"000002/00000\.jpg .*80.*96"):
        list(islice(train_loader(), 4))


def test_an_annotation_of_more_frames_than_its_video_has_is_named(videos) -> None:
    def forget_a_frame(content) -> None:
        content["videos"][0]["file_names"].pop()

    edit(videos / "train.json", forget_a_frame)
    with pytest.raises(ValueError, match=r"train\.json: object 1 has 8 segmentations .* the 7 frames of video 1"):
        DatasetCatalog.get("digits_video_train")


def test_videos_shorter_than_a_clip_repeat_frames(videos) -> None:
    loader = train_loader("INPUT.SAMPLING_FRAME_NUM", NUM_FRAMES + 3)
    for sample in next(iter(loader)):
        assert len(sample["image"]) == NUM_FRAMES + 3
        assert sample["instances"].gt_masks.unpack().shape[1] == NUM_FRAMES + 3
        assert len(set(sample["frame_indices"])) <= NUM_FRAMES


def test_clips_whose_frames_lack_every_object_train_as_background(videos) -> None:
    def forget_all_masks(content) -> None:
        for track in content["annotations"]:
            track.update({key: [None] * NUM_FRAMES for key in ("segmentations", "bboxes", "areas")})

    edit(videos / "train.json", forget_all_masks)
    loader = train_loader("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    assert all(len(sample["instances"]) == 0 for sample in next(iter(loader)))
    with pytest.raises(ValueError, match="no picture of digits_video_train has an annotation"):
        train_loader("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True)
