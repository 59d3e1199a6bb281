"""From the files of a data set to Detectron2's records, one dict for each picture."""

from __future__ import annotations

import json
import os
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager

from mask2former.data.datasets.splits import Split, all_splits

Record = dict[str, Any]

_FOLDER_KEYS = ("image_root", "image_dir", "panoptic_root", "sem_seg_root", "gt_dir")
_FILE_KEYS = ("panoptic_json", "json_file")


def require_files(name: str) -> None:
    """Raises FileNotFoundError with the first missing path of a registered data set and the tree that is expected."""
    metadata = MetadataCatalog.get(name)
    paths = {key: metadata.get(key) for key in (*_FOLDER_KEYS, *_FILE_KEYS)}
    if paths["panoptic_json"] is not None:
        paths["json_file"] = None  # read by an evaluator only
    expected = {key: path for key, path in paths.items() if path is not None}
    missing = next((path for path in expected.values() if not PathManager.exists(path)), None)
    if missing is not None:
        tree = "\n".join(f"  {path}{os.sep if key in _FOLDER_KEYS else ''}" for key, path in expected.items())
        template = next((split.preparation for split in all_splits() if split.name == name), "")
        command = template.format(folder=os.path.dirname(metadata.get("image_root", "")))
        raise FileNotFoundError(
            f"data set {name!r}: {missing} does not exist. Expected files and folders:\n{tree}\n"
            "The root of all data sets is the environment variable DETECTRON2_DATASETS (default: ./datasets); "
            + (f"prepare this one with: {command}" if command else "datasets/README.md says how each one is prepared.")
        )


def load_split(split: Split) -> list[Record]:
    """The records of a split; its paths come from the metadata of its registered name."""
    require_files(split.name)
    metadata = MetadataCatalog.get(split.name)
    if split.form == "panoptic":
        return _load_panoptic(split)
    if split.form == "instance":
        try:
            records: list[Record] = load_coco_json(metadata.json_file, metadata.image_root, split.name)
        except (KeyError, ValueError, AssertionError) as error:  # the last from pycocotools
            raise _damaged(metadata.json_file, error) from error
    else:
        records = _load_semantic(split)
    return _not_empty(records, split.name)


def _load_semantic(split: Split) -> list[Record]:
    """One record for each picture of the folder.

    Unlike Detectron2's function also for those without a label file, so that the mapper names them, or skips and counts
    them (DATALOADER.SKIP_BROKEN).
    """
    metadata = MetadataCatalog.get(split.name)
    names = sorted(name for name in PathManager.ls(metadata.image_root) if name.endswith(split.image_suffix))
    return [
        {
            "file_name": os.path.join(metadata.image_root, name),
            "sem_seg_file_name": os.path.join(metadata.sem_seg_root, f"{name.removesuffix(split.image_suffix)}.png"),
        }
        for name in names
    ]


def _load_panoptic(split: Split) -> list[Record]:
    """COCO panoptic: one record for each annotation, `category_id` of its segments replaced by the contiguous id."""
    metadata = MetadataCatalog.get(split.name)
    try:
        with PathManager.open(metadata.panoptic_json) as file:
            content = json.load(file)
        annotations = content["annotations"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(metadata.panoptic_json, error) from error
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    images = {image["id"]: image for image in content.get("images", ())}
    records = []
    for annotation in annotations:
        stem = os.path.splitext(annotation["file_name"])[0]
        image = images.get(annotation["image_id"], {})
        record: Record = {
            "file_name": os.path.join(metadata.image_root, image.get("file_name", stem + split.image_suffix)),
            "image_id": annotation["image_id"],
            "pan_seg_file_name": os.path.join(metadata.panoptic_root, annotation["file_name"]),
            **{side: image[side] for side in ("height", "width") if side in image},
        }
        if metadata.get("sem_seg_root") is not None:
            record["sem_seg_file_name"] = os.path.join(metadata.sem_seg_root, annotation["file_name"])
        record["segments_info"] = [
            _with_contiguous_id(segment, things, stuff, annotation["file_name"], metadata.panoptic_json)
            for segment in annotation["segments_info"]
        ]
        records.append(record)
    return _not_empty(records, split.name)


def _with_contiguous_id(
    segment: dict[str, Any], things: dict[int, int], stuff: dict[int, int], file_name: str, json_file: str
) -> dict[str, Any]:
    category = segment["category_id"]
    is_thing = category in things
    if not is_thing and category not in stuff:
        known = f"{min(stuff)}..{max(stuff)}"
        raise ValueError(f"{json_file}: {file_name} has a segment of category {category}, categories are {known}")
    return {**segment, "category_id": things[category] if is_thing else stuff[category], "isthing": is_thing}


def _damaged(json_file: str, error: Exception) -> ValueError:
    what = f"the entry {error} is missing" if isinstance(error, KeyError) and len(str(error)) < 40 else str(error)
    return ValueError(f"{json_file} cannot be used, it is cut off or not what its name says: {what}")


def _not_empty(records: list[Record], name: str) -> list[Record]:
    if not records:
        raise ValueError(f"data set {name!r} has no pictures: its files exist but list none")
    return records
