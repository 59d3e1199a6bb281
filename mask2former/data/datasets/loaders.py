"""From the files of a data set to Detectron2's records, one dict for each picture or video."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager

from mask2former.data.datasets.annotation_files import (
    Record,
    complaints_name,
    contiguous_segments,
    damaged,
    read_json,
)
from mask2former.data.datasets.cityscapes import (
    load_cityscapes_instances,
    load_cityscapes_panoptic,
    load_cityscapes_semantic,
)
from mask2former.data.datasets.coco_as_youtube_vis import load_coco_as_youtube_vis
from mask2former.data.datasets.metadata import SplitMetadata
from mask2former.data.datasets.splits import Form, Split
from mask2former.data.datasets.youtube_vis import load_youtube_vis

__all__ = ["Record", "load_split", "read_split", "require_files"]

_FOLDER_KEYS = ("image_root", "image_dir", "panoptic_root", "sem_seg_root", "gt_dir")
_FILE_KEYS = ("class_file", "panoptic_json", "json_file")
_RECORD_FILES = ("file_name", "pan_seg_file_name", "sem_seg_file_name")


def require_files(name: str) -> None:
    """Raises FileNotFoundError with the first missing path of a registered data set and the tree that is expected."""
    metadata = MetadataCatalog.get(name)
    paths = {key: metadata.get(key) for key in (*_FOLDER_KEYS, *_FILE_KEYS)}
    if paths["panoptic_json"] is not None:
        paths["json_file"] = None  # read by an evaluator only
    expected = {key: path for key, path in paths.items() if path is not None}
    missing = next((path for path in expected.values() if not PathManager.exists(path)), None)
    if missing is not None:
        tree = "\n".join(
            f"  {path.rstrip('/')}{os.sep if key in _FOLDER_KEYS else ''}" for key, path in expected.items()
        )
        raise FileNotFoundError(
            f"data set {name!r}: {missing} does not exist. Expected files and folders:\n{tree}\n{_cure(metadata)}"
        )


def load_split(split: Split) -> list[Record]:
    """The records of a split; its paths come from the metadata of its registered name.

    Raises:
        FileNotFoundError: a file or folder of the data set, or a file of the first record, is missing.
        ValueError: an annotation file cannot be used, or lists no picture.
    """
    records = read_split(split)
    # A look at every record would take minutes on a network drive; one finds labels that were never prepared.
    first = records[0]
    files = [*first.get("file_names", ())[:1], *(first[key] for key in _RECORD_FILES if key in first)]
    missing = next((path for path in files if not PathManager.isfile(path)), None)
    if missing is not None:
        cure = _cure(MetadataCatalog.get(split.name))
        raise FileNotFoundError(f"data set {split.name!r}: {missing} does not exist. {cure}")
    return records


def read_split(split: Split) -> list[Record]:
    """Like `load_split`, without a look at the files of a record: for who looks at all of them."""
    require_files(split.name)
    records = _LOADERS[split.form](split, MetadataCatalog.get(split.name))
    if not records:
        raise ValueError(f"data set {split.name!r} has no pictures: its files exist but list none")
    return records


def _cure(metadata: Metadata) -> str:
    command = metadata.preparation_command() if isinstance(metadata, SplitMetadata) else ""
    return "The root of all data sets is the environment variable DETECTRON2_DATASETS (default: ./datasets); " + (
        f"prepare this one with: {command}" if command else "datasets/README.md says how each one is prepared."
    )


def _load_instances(split: Split, metadata: Metadata) -> list[Record]:
    try:
        if split.form == "coco_as_video":
            return load_coco_as_youtube_vis(metadata)
        records: list[Record] = load_coco_json(metadata.json_file, metadata.image_root, split.name)
    # AssertionError comes from pycocotools, and from metadata that lists other classes than the file.
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise damaged(metadata.json_file, error) from error
    return records


def _load_semantic(split: Split, metadata: Metadata) -> list[Record]:
    """One record for each picture of the folder.

    Unlike Detectron2's function also for those without a label file, so that the mapper names them, or skips and counts
    them (DATALOADER.SKIP_BROKEN).
    """
    names = sorted(name for name in PathManager.ls(metadata.image_root) if name.endswith(split.image_suffix))
    return [
        {
            "file_name": os.path.join(metadata.image_root, name),
            "sem_seg_file_name": os.path.join(
                metadata.sem_seg_root, name.removesuffix(split.image_suffix) + split.label_suffix
            ),
        }
        for name in names
    ]


def _load_panoptic(split: Split, metadata: Metadata) -> list[Record]:
    """COCO panoptic: one record for each annotation, `category_id` of its segments replaced by the contiguous id."""
    path = metadata.panoptic_json
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    content = read_json(path)
    records = []
    with complaints_name(path):
        images = {image["id"]: image for image in content.get("images", ())}
        for annotation in content["annotations"]:
            image = images.get(annotation["image_id"], {})
            stem = os.path.splitext(annotation["file_name"])[0]
            record: Record = {
                "file_name": os.path.join(metadata.image_root, stem + split.image_suffix),
                "image_id": annotation["image_id"],
                "pan_seg_file_name": os.path.join(metadata.panoptic_root, annotation["file_name"]),
                **{side: image[side] for side in ("height", "width") if side in image},
            }
            if metadata.get("sem_seg_root") is not None:
                record["sem_seg_file_name"] = os.path.join(metadata.sem_seg_root, stem + split.label_suffix)
            record["segments_info"] = contiguous_segments(annotation, things, stuff, path)
            records.append(record)
    return records


_LOADERS: dict[Form, Callable[[Split, Any], list[Record]]] = {
    "instance": _load_instances,
    "coco_as_video": _load_instances,
    "panoptic": _load_panoptic,
    "semantic": _load_semantic,
    "video": lambda split, metadata: load_youtube_vis(
        metadata.json_file, metadata.image_root, metadata.thing_dataset_id_to_contiguous_id
    ),
    "cityscapes_instance": lambda split, metadata: load_cityscapes_instances(metadata.image_dir, metadata.gt_dir),
    "cityscapes_panoptic": lambda split, metadata: load_cityscapes_panoptic(metadata),
    "cityscapes_semantic": lambda split, metadata: load_cityscapes_semantic(metadata.image_dir, metadata.gt_dir),
}
