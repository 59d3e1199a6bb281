"""The loader of evaluations: every picture once, alone or with others of the same input size."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.config import load_config
from mask2former.data import build_test_loader
from mask2former.data.evaluation_loader import equal_batches

#: (height, width); at a short side of 24 and with padding to 32 the inputs are 32x64, 64x32, 32x32 or 32x96.
SIZES = [(48, 70), (70, 48), (48, 96), (30, 30), (24, 35), (60, 24), (96, 192), (24, 66)]
PADDED = [(32, 64), (64, 32), (32, 64), (32, 32), (32, 64), (64, 32), (32, 64), (32, 96)]


def make_config(*overrides: str):
    small = ["INPUT.MIN_SIZE_TEST", "24", "DATALOADER.NUM_WORKERS", "0", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "32"]
    return load_config("configs/digits/panoptic.yaml", [*small, *overrides])


@pytest.fixture(params=[True, False], ids=["sizes in records", "sizes in files"])
def pictures(request, tmp_path) -> str:
    records = []
    for number, (height, width) in enumerate(SIZES):
        path = str(tmp_path / f"{number}.png")
        Image.fromarray(np.full((height, width, 3), number, dtype=np.uint8)).save(path)
        size = {"height": height, "width": width} if request.param else {}
        records.append({"file_name": path, "image_id": 10 * number, **size})
    DatasetCatalog.register("sized_pictures", lambda: records)
    yield "sized_pictures"
    DatasetCatalog.remove("sized_pictures")
    MetadataCatalog.pop("sized_pictures")


def ids(batches) -> list[list[int]]:
    return [[sample["image_id"] for sample in batch] for batch in batches]


def test_by_default_pictures_come_one_by_one_in_order(digits_root) -> None:
    batches = list(build_test_loader(make_config(), "digits_panoptic_val"))
    assert ids(batches) == [[0], [1], [2], [3]]
    assert batches[0][0]["image"].dtype == torch.uint8 and "instances" not in batches[0][0]
    assert [batch[0]["position"] for batch in batches] == [0, 1, 2, 3]


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_a_batch_has_pictures_of_the_same_padded_size(pictures, num_workers) -> None:
    loader = build_test_loader(make_config("TEST.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", num_workers), pictures)
    batches = list(loader)
    assert ids(batches) == [[0, 20], [10, 50], [40, 60], [30], [70]] and len(loader) == 5
    for sample in sum(batches, []):
        position = sample["position"]
        padded = tuple(-(-side // 32) * 32 for side in sample["image"].shape[-2:])
        assert padded == PADDED[position] and sample["image_id"] == 10 * position


def test_without_a_divisor_sizes_agree_exactly(pictures) -> None:
    cfg = make_config("TEST.IMS_PER_BATCH", "8", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "-1")
    for batch in build_test_loader(cfg, pictures):
        assert len({sample["image"].shape for sample in batch}) == 1


def test_batches_come_when_they_are_complete_and_the_rest_at_the_end() -> None:
    batches = equal_batches(range(10, 20), 3, lambda index: index % 3 == 0)
    assert batches == [[10, 11, 13], [14, 16, 17], [12, 15, 18], [19]]
    assert equal_batches([], 3, hash) == []


def test_a_batch_of_no_picture_is_refused(pictures) -> None:
    with pytest.raises(ValueError, match=r"TEST\.IMS_PER_BATCH must be at least 1, got 0"):
        build_test_loader(make_config("TEST.IMS_PER_BATCH", "0"), pictures)


def test_other_mappers_load_single_pictures(pictures) -> None:
    def mapper(record):
        return {"image_id": record["image_id"]}

    assert ids(build_test_loader(make_config(), pictures, mapper)) == [[10 * number] for number in range(8)]
    with pytest.raises(ValueError, match=r"TEST\.IMS_PER_BATCH above 1 needs an ImageMapper of pictures, got function"):
        build_test_loader(make_config("TEST.IMS_PER_BATCH", "2"), pictures, mapper)
