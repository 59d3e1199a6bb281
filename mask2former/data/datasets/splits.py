"""The one table of data sets: which files each registered name stands for, and how its metadata is made."""

from __future__ import annotations

from typing import Literal, NamedTuple

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from mask2former.data.datasets.categories import Category, load_categories

Form = Literal["panoptic", "instance", "semantic"]


class Split(NamedTuple):
    """One registered name. `paths` (relative to the data sets' root) have the names of Detectron2's metadata keys."""

    name: str
    form: Form
    categories: str  # a name that `split_categories` knows
    evaluator_type: str
    paths: dict[str, str]
    image_suffix: str  # of pictures whose name the annotation file does not give
    ignore_label: int = 255
    preparation: str = ""  # the command that makes the files in {folder}, for messages; "" where it is a longer story


def split_categories(split: Split) -> list[Category]:
    """The category table of a split, in contiguous order."""
    if split.categories == "coco_panoptic":  # Detectron2 has this table already
        return [Category(c["id"], c["name"], bool(c["isthing"]), tuple(c["color"])) for c in COCO_CATEGORIES]
    return load_categories(split.categories)


def all_splits() -> list[Split]:
    """Every split this package registers; Detectron2 registers some more (coco_2017_*, ade20k_sem_seg_*, ...)."""
    return [*_digits_splits(), *_coco_splits()]


def _digits_splits() -> list[Split]:
    preparation = "python datasets/prepare_digits.py --output {folder}"
    splits = []
    for part in ("train", "val"):
        images = {"image_root": f"digits/{part}"}
        instances = {"json_file": f"digits/annotations/instances_{part}.json"}
        semantic = {"sem_seg_root": f"digits/semantic_{part}"}
        panoptic = {
            "panoptic_root": f"digits/panoptic_{part}",
            "panoptic_json": f"digits/annotations/panoptic_{part}.json",
        }
        # Panoptic names carry all three forms of labels, so that one pass gives PQ, AP and mIoU.
        everything = {**images, **panoptic, **semantic, **instances}
        splits += [
            Split(f"digits_panoptic_{part}", "panoptic", "digits", "coco_panoptic_seg", everything, ".png"),
            Split(f"digits_instance_{part}", "instance", "digits", "coco", {**images, **instances}, ".png"),
            Split(f"digits_semantic_{part}", "semantic", "digits", "sem_seg", {**images, **semantic}, ".png"),
        ]
    return [split._replace(preparation=preparation) for split in splits]


def _coco_splits() -> list[Split]:
    splits = []
    for part in ("train", "val"):
        paths = {
            "image_root": f"coco/{part}2017",
            "panoptic_root": f"coco/panoptic_{part}2017",
            "panoptic_json": f"coco/annotations/panoptic_{part}2017.json",
            "sem_seg_root": f"coco/panoptic_semseg_{part}2017",
            "json_file": f"coco/annotations/instances_{part}2017.json",
        }
        name = f"coco_2017_{part}_panoptic_with_sem_seg"
        splits.append(Split(name, "panoptic", "coco_panoptic", "coco_panoptic_seg", paths, ".jpg"))
    return splits
