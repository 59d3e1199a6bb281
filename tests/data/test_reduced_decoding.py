"""JPEG files decoded no larger than the augmentation makes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data import BrokenSampleError
from mask2former.data.masks import id_to_rgb
from mask2former.data.reading import read_image, read_shrunken_image
from tests.data.test_mappers import DATASETS, make_mapper

SIZE = (160, 240)
TURNED = 6  # EXIF: the camera was held upright
CHANGES = {
    "INPUT__MIN_SIZE_TRAIN": "(24, 60, 90, 200)",
    "INPUT__CROP__ENABLED": "True",
    "INPUT__CROP__TYPE": "absolute",
    "INPUT__CROP__SIZE": "(48, 64)",
    "INPUT__RANDOM_FLIP": "horizontal",
    "INPUT__IMAGE_SIZE": "64",
    "INPUT__MIN_SCALE": "0.3",
    "INPUT__MAX_SCALE": "4.0",
}


def smooth_picture() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = [np.sin(x / 23) * np.cos(y / 31), np.sin((x + y) / 41), np.cos(x / 57)]
    return (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(params=["jpg", "png"])
def record(request, tmp_path) -> dict:
    image = Image.fromarray(smooth_picture())
    image.save(tmp_path / f"image.{request.param}")
    classes = np.where(np.arange(SIZE[1]) < 100, 3, 11).astype(np.uint8)[None].repeat(SIZE[0], axis=0)
    Image.fromarray(classes).save(tmp_path / "semantic.png")
    Image.fromarray(id_to_rgb(classes.astype(np.int32))).save(tmp_path / "panoptic.png")
    return {
        "file_name": str(tmp_path / f"image.{request.param}"),
        "height": SIZE[0],
        "width": SIZE[1],
        "sem_seg_file_name": str(tmp_path / "semantic.png"),
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": [{"id": category, "category_id": category} for category in (3, 11)],
        "annotations": [{"category_id": 3, "segmentation": [[10.0, 10.0, 90.0, 12.0, 80.0, 120.0]]}],
    }


@pytest.mark.parametrize(
    "smallest", [(160, 240), (81, 10), (80, 120), (79, 100), (41, 61), (20, 30), (5, 5), (300, 400)]
)
@pytest.mark.parametrize("orientation", [1, TURNED])
def test_a_jpeg_shrinks_by_a_power_of_two_but_never_below_what_is_asked_for(tmp_path, smallest, orientation) -> None:
    path = str(tmp_path / "image.jpg")
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(smooth_picture()).save(path, exif=exif)
    stored = SIZE[::-1] if orientation == TURNED else SIZE
    wanted = smallest[::-1] if orientation == TURNED else smallest
    shrunken = read_shrunken_image(path, "RGB", wanted)
    whole = read_image(path, "RGB")
    assert whole.shape[:2] == stored
    factor = max((f for f in (1, 2, 4, 8) if all(s // w >= f for s, w in zip(stored, wanted, strict=True))), default=1)
    assert shrunken.shape[:2] == tuple(-(-side // factor) for side in stored)
    expected = np.asarray(Image.fromarray(whole).resize(shrunken.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(shrunken.astype(int) - expected).mean() < 3
    assert np.array_equal(read_shrunken_image(path, "BGR", wanted), shrunken[..., ::-1])


@pytest.mark.parametrize("name", DATASETS)
def test_samples_are_nearly_the_same_and_their_targets_exactly(record, name) -> None:
    kept = {
        "semantic": ("sem_seg_file_name",),
        "panoptic": ("pan_seg_file_name", "segments_info"),
        "instance": ("annotations",),
    }
    form = next(form for form in kept if form in name)
    own = {key: record[key] for key in ("file_name", "height", "width", *kept[form])}
    if not name.startswith("mask_former_s"):
        own.pop("sem_seg_file_name", None)
    samples = {}
    for is_on in ("False", "True"):
        mapper = make_mapper(name, INPUT__REDUCED_DECODING=is_on, **CHANGES)
        np.random.seed(0)
        samples[is_on] = [mapper(own) for _ in range(8)]
    for whole, reduced in zip(samples["False"], samples["True"], strict=True):
        assert reduced.keys() == whole.keys() and (reduced["height"], reduced["width"]) == SIZE
        assert torch.equal(reduced["instances"].gt_masks, whole["instances"].gt_masks)
        difference = (reduced["image"].int() - whole["image"].int()).abs().float()
        assert reduced["image"].shape == whole["image"].shape
        assert difference.max() == 0 if record["file_name"].endswith("png") else difference.mean() < 3


def test_with_nothing_to_resize_the_whole_picture_is_read(record) -> None:
    mapper = make_mapper("mask_former_semantic", INPUT__REDUCED_DECODING="True", INPUT__MIN_SIZE_TRAIN="(0,)")
    own = {key: record[key] for key in ("file_name", "sem_seg_file_name")}
    image = mapper(own)["image"].numpy().transpose(1, 2, 0)
    assert np.array_equal(image, read_image(record["file_name"], "RGB"))


@pytest.mark.parametrize("damage", ["missing", "cut off", "other size"])
def test_a_broken_picture_is_named(record, damage, tmp_path) -> None:
    path = tmp_path / record["file_name"]
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        Image.fromarray(np.zeros((5, 6, 3), dtype=np.uint8)).save(path)
    own = {key: record[key] for key in ("file_name", "height", "width", "sem_seg_file_name")}
    with pytest.raises(BrokenSampleError, match=r"image\."):
        make_mapper("mask_former_semantic", INPUT__REDUCED_DECODING="True")(own)
