"""The mappers: round trips on tiny data, the published behavior, and what happens to bad labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from PIL import Image

from mask2former.config import load_config
from mask2former.data import BrokenSampleError, ImageMapper
from mask2former.data.label_window import LabelWindow
from mask2former.data.masks import encode_rle, id_to_rgb
from mask2former.registry import DATASET_MAPPER_REGISTRY, lookup

CONFIGS = {
    "mask_former_semantic": "configs/digits/semantic.yaml",
    "mask_former_panoptic": "configs/digits/panoptic.yaml",
    "mask_former_instance": "configs/digits/instance.yaml",
    "coco_instance_lsj": "configs/digits/instance.yaml",
    "coco_panoptic_lsj": "configs/digits/panoptic.yaml",
}
DATASETS = {
    "mask_former_semantic": "digits_semantic_train",
    "mask_former_panoptic": "digits_panoptic_train",
    "mask_former_instance": "digits_instance_train",
    "coco_instance_lsj": "digits_instance_train",
    "coco_panoptic_lsj": "digits_panoptic_train",
}
SIZE = (24, 36)
#: Nothing random: a sample then equals its files.
AS_STORED = {
    "INPUT.MIN_SIZE_TRAIN": "(24,)",
    "INPUT.MAX_SIZE_TRAIN": "1000",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.CROP.ENABLED": "False",
    "INPUT.RANDOM_FLIP": "none",
    "INPUT.SIZE_DIVISIBILITY": "-1",
    "INPUT.DROP_EMPTY_MASKS": "False",
    "INPUT.IMAGE_SIZE": "36",
    "INPUT.MIN_SCALE": "1.0",
    "INPUT.MAX_SCALE": "1.0",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "13",
}


def make_mapper(name: str, is_train: bool = True, **changes: str):
    values = {**AS_STORED, **{key.replace("__", "."): value for key, value in changes.items()}}
    cfg = load_config(CONFIGS[name], [part for pair in values.items() for part in pair])
    return lookup(DATASET_MAPPER_REGISTRY, name, "KEY")(cfg, is_train)


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


#: Class and mask of the three segments in the picture that `record` writes; the last one is a crowd.
SEGMENTS = [(3, square(2, 4, 10)), (11, square(12, 20, 9)), (5, square(0, 30, 5))]


def polygon_of(mask: np.ndarray) -> list:
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [[float(value) for value in (x0, y0, x1, y0, x1, y1, x0, y1)]]


@pytest.fixture
def record(tmp_path) -> dict:
    """A picture with all forms of labels, written to files."""
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    ids, classes = np.zeros(SIZE, dtype=np.int32), np.full(SIZE, 255, dtype=np.uint8)
    segments, annotations = [], []
    for number, (category, mask) in enumerate(SEGMENTS):
        is_crowd = int(number == 2)
        ids[mask] = 70000 * (number + 1)
        classes[mask] = category if not is_crowd else 255
        segments.append({"id": 70000 * (number + 1), "category_id": category, "iscrowd": is_crowd})
        annotations.append(
            {
                "category_id": category,
                "iscrowd": is_crowd,
                "bbox": [0.0, 0.0, 1.0, 1.0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "segmentation": polygon_of(mask) if number == 0 else encode_rle(mask),
                "keypoints": [1.0, 2.0, 2.0],
            }
        )
    for name, array in (("image", image), ("panoptic", id_to_rgb(ids)), ("semantic", classes)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 7,
        "height": SIZE[0],
        "width": SIZE[1],
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "sem_seg_file_name": str(tmp_path / "semantic.png"),
        "segments_info": segments,
        "annotations": annotations,
    }


def for_mapper(name: str, record: dict) -> dict:
    """The record as the data sets of this mapper make it."""
    kept = {
        "mask_former_semantic": ("sem_seg_file_name",),
        "mask_former_panoptic": ("pan_seg_file_name", "sem_seg_file_name", "segments_info"),
        "coco_panoptic_lsj": ("pan_seg_file_name", "sem_seg_file_name", "segments_info"),
    }.get(name, ("annotations",))
    return {key: record[key] for key in ("file_name", "image_id", "height", "width", *kept)}


def expected_masks(mapper_name: str) -> np.ndarray:
    masks = np.stack([mask for _, mask in SEGMENTS[:2]])
    padding = 36 - SIZE[0] if mapper_name.endswith("_lsj") else 0
    return np.pad(masks, ((0, 0), (0, padding), (0, 0)))


@pytest.mark.parametrize("name", CONFIGS)
def test_without_augmentation_the_sample_is_what_the_files_say(record, name) -> None:
    sample = make_mapper(name)(for_mapper(name, record))
    stored = np.asarray(Image.open(record["file_name"]))
    assert sample["image"].dtype == torch.uint8 and sample["image"].is_contiguous()
    assert np.array_equal(sample["image"][:, : SIZE[0]].numpy().transpose(1, 2, 0), stored)
    instances = sample["instances"]
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_classes.tolist() == [3, 11]
    assert instances.gt_masks.dtype == torch.bool and type(instances.gt_masks) is torch.Tensor
    assert np.array_equal(instances.gt_masks.numpy(), expected_masks(name))
    assert instances.image_size == tuple(sample["image"].shape[-2:])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sample_keeps_the_stored_size_and_drops_the_label_files(record, name) -> None:
    before = json.dumps(record, default=str)
    sample = make_mapper(name, INPUT__MIN_SIZE_TRAIN="(48,)")(for_mapper(name, record))
    assert (sample["height"], sample["width"], sample["image_id"]) == (*SIZE, 7)
    assert not {"annotations", "sem_seg_file_name", "pan_seg_file_name"} & set(sample)
    assert json.dumps(record, default=str) == before


@pytest.mark.parametrize("name", CONFIGS)
def test_the_size_is_filled_in_where_the_record_has_none(record, name) -> None:
    without = {key: value for key, value in for_mapper(name, record).items() if key not in ("height", "width")}
    sample = make_mapper(name)(without)
    assert (sample["height"], sample["width"]) == SIZE


@pytest.mark.parametrize("name", CONFIGS)
def test_image_and_masks_move_together(record, name) -> None:
    """The picture shows its own mask: whatever is done to one must be done to the other."""
    mask = SEGMENTS[0][1]
    Image.fromarray(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255).save(record["file_name"])
    changes = {
        "INPUT__MIN_SIZE_TRAIN": "(40, 72)",
        "INPUT__CROP__ENABLED": "True",
        "INPUT__CROP__TYPE": "absolute",
        "INPUT__CROP__SIZE": "(30, 40)",
        "INPUT__RANDOM_FLIP": "horizontal",
        "INPUT__SIZE_DIVISIBILITY": "48",
        "INPUT__IMAGE_SIZE": "48",
        "INPUT__MIN_SCALE": "0.8",
        "INPUT__MAX_SCALE": "2.0",
    }
    mapper = make_mapper(name, **changes)
    np.random.seed(0)
    num_visible = 0
    for _ in range(12):
        sample = mapper(for_mapper(name, record))
        assert sample["image"].shape == (3, 48, 48)
        classes = sample["instances"].gt_classes.tolist()
        shown = sample["image"][0].numpy() > 128.5  # padding has the value 128
        target = sample["instances"].gt_masks[classes.index(3)].numpy() if 3 in classes else np.zeros_like(shown)
        num_visible += bool(target.any())
        # Bilinear pictures and nearest labels may disagree by about a pixel along the outline.
        assert (shown ^ target).sum() <= 0.15 * target.sum() + 12
    assert num_visible > 6


@pytest.mark.parametrize("name", ["mask_former_semantic", "mask_former_panoptic", "mask_former_instance"])
def test_padding_goes_to_exactly_the_configured_side(record, name) -> None:
    sample = make_mapper(name, INPUT__SIZE_DIVISIBILITY="64")(for_mapper(name, record))
    assert sample["image"].shape == (3, 64, 64) and sample["instances"].image_size == (64, 64)
    assert torch.all(sample["image"][:, SIZE[0] :] == 128) and torch.all(sample["image"][:, :, SIZE[1] :] == 128)
    assert not sample["instances"].gt_masks[:, SIZE[0] :].any()
    if "sem_seg" in sample:
        assert sample["sem_seg"].dtype == torch.int64
        assert torch.all(sample["sem_seg"][SIZE[0] :] == 255)


def test_a_picture_larger_than_the_divisor_is_never_cut(record) -> None:
    sample = make_mapper("mask_former_semantic", INPUT__SIZE_DIVISIBILITY="16")(
        for_mapper("mask_former_semantic", record)
    )
    assert sample["image"].shape == (3, 32, 48)


def test_the_ignore_label_is_no_segment_and_classes_come_in_ascending_order(record, tmp_path) -> None:
    labels = np.full(SIZE, 255, dtype=np.uint8)
    labels[:4], labels[4:8], labels[8:12] = 7, 0, 7
    Image.fromarray(labels).save(tmp_path / "semantic.png")
    instances = make_mapper("mask_former_semantic")(for_mapper("mask_former_semantic", record))["instances"]
    assert instances.gt_classes.tolist() == [0, 7]
    assert instances.gt_masks.sum(dim=(1, 2)).tolist() == [4 * SIZE[1], 8 * SIZE[1]]


def test_semantic_labels_shrink_by_the_floor_rule(record, tmp_path) -> None:
    """Published semantic models were trained with torch's nearest rule, which takes sample floor(i * scale)."""
    labels = np.tile(np.arange(SIZE[1], dtype=np.uint8) % 13, (SIZE[0], 1))
    Image.fromarray(labels).save(tmp_path / "semantic.png")
    sample = make_mapper("mask_former_semantic", INPUT__MIN_SIZE_TRAIN="(16,)")(
        for_mapper("mask_former_semantic", record)
    )
    columns = np.floor(np.arange(24) * 1.5).astype(int)
    assert np.array_equal(sample["sem_seg"][0].numpy(), labels[0, columns])


def test_panoptic_and_semantic_labels_agree_after_resizing(record) -> None:
    sample = make_mapper("mask_former_panoptic", INPUT__MIN_SIZE_TRAIN="(17,)")(
        for_mapper("mask_former_panoptic", record)
    )
    for category, mask in zip(sample["instances"].gt_classes, sample["instances"].gt_masks, strict=True):
        assert torch.equal(sample["sem_seg"] == category, mask)


def cropped_mapper(name: str, **changes: str):
    """Every sample is a window of 4 x 4, so that nearly everything is cut away."""
    crop = {"INPUT__CROP__ENABLED": "True", "INPUT__CROP__TYPE": "absolute", "INPUT__CROP__SIZE": "(4, 4)"}
    jitter = {"INPUT__IMAGE_SIZE": "4", "INPUT__MIN_SCALE": "9.0", "INPUT__MAX_SCALE": "9.0"}
    return make_mapper(name, **crop, **(jitter if name.endswith("lsj") else {}), **changes)


@pytest.mark.parametrize("name", ["mask_former_panoptic", "mask_former_instance", "coco_panoptic_lsj"])
def test_what_a_crop_removed_stays_as_an_empty_target_by_default(record, name) -> None:
    np.random.seed(0)
    mapper = cropped_mapper(name)
    samples = [mapper(for_mapper(name, record)) for _ in range(10)]
    assert all(sample["instances"].gt_classes.tolist() == [3, 11] for sample in samples)
    assert not all(sample["instances"].gt_masks.flatten(1).any(1).all() for sample in samples)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "mask_former_semantic"])
def test_what_a_crop_removed_is_dropped_with_its_label_on_demand(record, name) -> None:
    np.random.seed(0)
    mapper = cropped_mapper(name, INPUT__DROP_EMPTY_MASKS="True")
    counts = []
    for _ in range(40):
        instances = mapper(for_mapper(name, record))["instances"]
        assert instances.gt_masks.flatten(1).any(1).all()
        assert len(instances.gt_classes) == len(instances.gt_masks)
        assert instances.gt_masks.shape[1:] == (4, 4)
        counts.append(len(instances))
    assert 0 in counts and max(counts) > 0


def test_the_lsj_instance_mapper_always_drops_what_the_crop_removed(record) -> None:
    np.random.seed(0)
    mapper = cropped_mapper("coco_instance_lsj", INPUT__DROP_EMPTY_MASKS="False")
    for _ in range(10):
        assert mapper(for_mapper("coco_instance_lsj", record))["instances"].gt_masks.flatten(1).any(1).all()


def test_lsj_samples_carry_tight_boxes(record) -> None:
    instances = make_mapper("coco_instance_lsj")(for_mapper("coco_instance_lsj", record))["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[4, 2, 14, 12], [20, 12, 29, 21]]


@pytest.mark.parametrize("name", ["mask_former_instance", "coco_instance_lsj"])
def test_pictures_without_annotations_give_no_targets(record, name) -> None:
    sample = make_mapper(name)({**for_mapper(name, record), "annotations": []})
    assert sample["instances"].gt_masks.shape == (0, *sample["image"].shape[-2:])
    assert sample["instances"].gt_classes.shape == (0,)


def test_pictures_without_segments_give_no_targets(record) -> None:
    sample = make_mapper("mask_former_panoptic")({**for_mapper("mask_former_panoptic", record), "segments_info": []})
    assert sample["instances"].gt_masks.shape == (0, *SIZE)


def test_pictures_that_are_ignored_altogether_give_no_targets(record, tmp_path) -> None:
    Image.fromarray(np.full(SIZE, 255, dtype=np.uint8)).save(tmp_path / "semantic.png")
    sample = make_mapper("mask_former_semantic")(for_mapper("mask_former_semantic", record))
    assert sample["instances"].gt_masks.shape == (0, *SIZE) and sample["instances"].gt_classes.dtype == torch.int64


@pytest.mark.parametrize("name", ["coco_instance_lsj", "coco_panoptic_lsj"])
def test_lsj_records_without_labels_give_the_image_only(record, name) -> None:
    sample = make_mapper(name)({key: record[key] for key in ("file_name", "height", "width")})
    assert sample["image"].shape == (3, 36, 36) and "instances" not in sample


@pytest.mark.parametrize("has_semantic_file", [True, False])
def test_constrained_crops_avoid_windows_of_one_class_with_or_without_semantic_file(
    record, tmp_path, has_semantic_file
) -> None:
    # Left half one class, right half another: a window of one class is what plain crops give most of the time.
    left = np.tile(np.arange(SIZE[1]) < SIZE[1] // 2, (SIZE[0], 1))
    Image.fromarray(id_to_rgb(np.where(left, 70000, 140000))).save(tmp_path / "panoptic.png")
    Image.fromarray(np.where(left, 3, 11).astype(np.uint8)).save(tmp_path / "semantic.png")
    mapper = make_mapper(
        "mask_former_panoptic",
        INPUT__CROP__ENABLED="True",
        INPUT__CROP__TYPE="absolute",
        INPUT__CROP__SIZE="(12, 12)",
        INPUT__CROP__SINGLE_CATEGORY_MAX_AREA="0.8",
    )
    kept = for_mapper("mask_former_panoptic", record)
    if not has_semantic_file:
        del kept["sem_seg_file_name"]
    np.random.seed(0)
    shares = []
    for _ in range(40):
        areas = mapper(kept)["instances"].gt_masks.sum(dim=(1, 2))
        shares.append((areas.max() / areas.sum()).item())
    # Ten tries, each with chance 0.36: all of them fail in one of 87 samples.
    assert np.mean(np.array(shares) < 0.8) > 0.9


def test_the_class_map_from_panoptic_labels_ignores_void(record) -> None:
    mapper = make_mapper(
        "mask_former_panoptic", INPUT__CROP__ENABLED="True", INPUT__CROP__SINGLE_CATEGORY_MAX_AREA="0.8"
    )
    without = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
    derived = mapper.read_labels(without, SIZE).class_map_HW
    expected = np.full(SIZE, 255)
    for category, mask in SEGMENTS:
        expected[mask] = category
    assert np.array_equal(derived, expected)


@pytest.mark.parametrize("name", [*CONFIGS, "test"])
def test_testing_resizes_and_reads_no_labels(record, name) -> None:
    absent = {key: value + ".absent" if key.endswith("_seg_file_name") else value for key, value in record.items()}
    if name == "test":
        mapper = ImageMapper(load_config(CONFIGS["mask_former_panoptic"], ["INPUT.MIN_SIZE_TEST", "12"]), False)
    else:
        mapper = make_mapper(name, is_train=False, INPUT__MIN_SIZE_TEST="12")
    sample = mapper(absent)
    assert sample["image"].shape == (3, 12, 18) and "instances" not in sample
    assert (sample["height"], sample["width"]) == SIZE


def test_the_test_mapper_cannot_train() -> None:
    with pytest.raises(ValueError, match=r"choose INPUT\.DATASET_MAPPER_NAME"):
        ImageMapper(load_config(CONFIGS["mask_former_panoptic"]), True)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_class_out_of_range_is_named_with_file_and_range(record, name) -> None:
    mapper = make_mapper(name, MODEL__SEM_SEG_HEAD__NUM_CLASSES="11")
    with pytest.raises(ValueError, match=r"\.png has the class 11; allowed are 0\.\.10.*NUM_CLASSES") as caught:
        mapper(for_mapper(name, record))
    assert not isinstance(caught.value, BrokenSampleError)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mask_former_semantic", "sem_seg_file_name"),
        ("mask_former_panoptic", "pan_seg_file_name"),
        ("mask_former_instance", "annotations"),
    ],
)
def test_a_record_of_another_task_is_refused_with_the_key_to_change(record, name, key) -> None:
    kept = for_mapper(name, record)
    del kept[key]
    with pytest.raises(ValueError, match=rf"has no '{key}'.*INPUT\.DATASET_MAPPER_NAME"):
        make_mapper(name)(kept)


def test_semantic_segmentation_refuses_annotations(record) -> None:
    with pytest.raises(ValueError, match="cannot use a record with `annotations`"):
        make_mapper("mask_former_semantic")(record)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("damage", ["missing", "cut off", "other size"])
def test_a_broken_picture_is_named(record, name, damage) -> None:
    path = Path(record["file_name"])
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        Image.fromarray(np.zeros((5, 6, 3), dtype=np.uint8)).save(path)
    with pytest.raises(BrokenSampleError, match=r"image\.png"):
        make_mapper(name)(for_mapper(name, record))


@pytest.mark.parametrize(
    ("name", "file_name"), [("mask_former_semantic", "semantic.png"), ("mask_former_panoptic", "panoptic.png")]
)
@pytest.mark.parametrize("damage", ["missing", "cut off", "other size"])
def test_a_broken_label_file_is_named(record, tmp_path, name, file_name, damage) -> None:
    path = tmp_path / file_name
    message = file_name
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:60])
    else:
        shape = (5, 6) if name == "mask_former_semantic" else (5, 6, 3)
        Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(path)
        message = rf"{file_name} has \(height, width\) \(5, 6\), but .*image\.png has \(24, 36\)"
    with pytest.raises(BrokenSampleError, match=message):
        make_mapper(name)(for_mapper(name, record))


@pytest.mark.parametrize("segmentation", [[[1.0, 2.0, 3.0, 4.0]], {"size": [5, 5], "counts": [25]}])
@pytest.mark.parametrize("name", ["mask_former_instance", "coco_instance_lsj"])
def test_a_broken_annotation_names_its_picture(record, name, segmentation) -> None:
    record["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(BrokenSampleError, match=r"image\.png: "):
        make_mapper(name)(for_mapper(name, record))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_mapper_reads_the_embedded_data_set(digits_root, name) -> None:
    mapper = make_mapper(name, INPUT__MIN_SIZE_TRAIN="(96,)", INPUT__IMAGE_SIZE="96")
    for record in DatasetCatalog.get(DATASETS[name]):
        sample = mapper(record)
        masks = sample["instances"].gt_masks
        assert sample["image"].shape == (3, 96, 96)
        assert masks.flatten(1).any(1).all() and masks.sum(0).max() == 1
        if "panoptic" in name or "semantic" in name:
            assert masks.any(0).float().mean() > 0.97


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "mask_former_semantic"])
def test_labels_are_looked_up_to_the_same_targets_as_transformed_ones(record, name, monkeypatch) -> None:
    """Where a transform is of no known kind, labels go through all of them at full size: the definition."""
    changes = {"INPUT__IMAGE_SIZE": "30", "INPUT__MIN_SCALE": "0.3", "INPUT__MAX_SCALE": "2.5"}
    if not name.endswith("lsj"):
        changes = {
            "INPUT__MIN_SIZE_TRAIN": "(13, 24, 41)",
            "INPUT__CROP__ENABLED": "True",
            "INPUT__CROP__TYPE": "absolute",
        }
        changes["INPUT__CROP__SIZE"] = "(12, 20)"
    mapper = make_mapper(name, INPUT__RANDOM_FLIP="horizontal", **changes)

    def targets() -> list:
        np.random.seed(0)
        found = [mapper(for_mapper(name, record))["instances"] for _ in range(12)]
        return [(instances.gt_classes.tolist(), instances.gt_masks.tolist()) for instances in found]

    looked_up = targets()
    monkeypatch.setattr(LabelWindow, "after", lambda transforms, size: None)
    assert looked_up == targets()
