"""Where instances of a dataset can be looked up: COCO's JSON file, or panoptic files from which one is made."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask

from mask2former.data.datasets.annotation_files import damaged, read_json, require_end_of_json
from mask2former.data.masks import rgb_to_id
from mask2former.data.reading import read_panoptic_ids
from mask2former.evaluation.workers import map_with_progress
from mask2former.files import write_atomically

__all__ = ["InstanceGroundTruth", "instances_from_panoptic", "read_ground_truth"]


class InstanceGroundTruth:
    """The instances of a registered dataset, looked for now, so that what is missing shows, and read when asked for."""

    def __init__(self, dataset_name: str, cache_folder: str | None = None) -> None:
        """
        Args:
            dataset_name: `json_file` of its metadata names a COCO file; without one, things of `panoptic_json` and
                `panoptic_root` are instances; with none of them, its records must have `annotations`.
            cache_folder: keeps what was made from panoptic files.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._json_file: str | None = metadata.get("json_file")
        self._panoptic = {key: metadata.get(key) for key in ("panoptic_json", "panoptic_root")}
        self._thing_ids = set(metadata.get("thing_dataset_id_to_contiguous_id", ()))
        self._cache_folder = cache_folder
        wanted = {"json_file": self._json_file} if self._json_file else self._panoptic
        if not any(wanted.values()):
            return
        for key, path in wanted.items():
            if not path or not PathManager.exists(path):
                raise FileNotFoundError(
                    f"instances of dataset {dataset_name!r} cannot be evaluated: {key} of its metadata is {path!r}, "
                    "which does not exist (or switch off MODEL.MASK_FORMER.TEST.INSTANCE_ON)"
                )
        require_end_of_json(self._json_file or self._panoptic["panoptic_json"])

    def read(self) -> dict[str, Any]:
        """The content of a COCO file."""
        if self._json_file:
            return read_ground_truth(self._json_file)
        if not self._panoptic["panoptic_json"]:
            made: dict[str, Any] = convert_to_coco_dict(self._name)
            return made
        if self._cache_folder is None:
            return instances_from_panoptic(**self._panoptic, thing_ids=self._thing_ids)
        cached = os.path.join(self._cache_folder, f"{self._name}_instances.json")
        source = PathManager.get_local_path(self._panoptic["panoptic_json"])
        if not os.path.isfile(cached) or os.path.getmtime(cached) < os.path.getmtime(source):
            made = instances_from_panoptic(**self._panoptic, thing_ids=self._thing_ids)
            os.makedirs(self._cache_folder, exist_ok=True)
            write_atomically(cached, lambda file: file.write(json.dumps(made).encode()))
        return read_ground_truth(cached)


def read_ground_truth(json_file: str, required: Collection[str] = ("images", "categories")) -> dict[str, Any]:
    """The content of a COCO annotation file.

    Args:
        json_file: the path.
        required: keys that it must have; `annotations` are missing from files of test splits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    if not PathManager.isfile(json_file):
        raise FileNotFoundError(f"annotation file {json_file!r} does not exist")
    content = read_json(json_file)
    absent = sorted(set(required) - set(content))
    if absent:
        raise damaged(json_file, f"the entry {absent[0]!r} is missing")
    return content


def instances_from_panoptic(panoptic_json: str, panoptic_root: str, thing_ids: set[int]) -> dict[str, Any]:
    """Things of panoptic files as the content of a COCO instance file.

    Args:
        panoptic_json, panoptic_root: a file and a folder of pictures in COCO's panoptic format.
        thing_ids: ids of the categories that are things; empty: the file's `isthing` says so.

    Returns:
        Masks as run lengths, with their area and box; segments without a pixel are left out.
    """
    logging.getLogger(__name__).info(f"Making instances from the things of {panoptic_json}")
    content = read_ground_truth(panoptic_json, ("annotations", "categories"))
    categories = [
        {"id": category["id"], "name": category["name"]}
        for category in content["categories"]
        if (category["id"] in thing_ids if thing_ids else category.get("isthing"))
    ]
    convert = partial(_instances_of_image, panoptic_root, frozenset(category["id"] for category in categories))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, found in map_with_progress(convert, content["annotations"], description="panoptic to instances"):
        images.append(image)
        annotations += [{"id": number, **entry} for number, entry in enumerate(found, start=len(annotations) + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _instances_of_image(
    panoptic_root: str, thing_ids: frozenset[int], annotation: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entry under `images` and those under `annotations`, which have no id yet."""
    ids_HW = rgb_to_id(read_panoptic_ids(os.path.join(panoptic_root, annotation["file_name"])))
    ids_WH = np.ascontiguousarray(ids_HW.T)  # run lengths follow columns
    found = []
    for segment in annotation["segments_info"]:
        if segment["category_id"] not in thing_ids:
            continue
        rle = coco_mask.encode((ids_WH == segment["id"]).view(np.uint8).T)
        area = int(coco_mask.area(rle))
        if area:
            found.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": segment["category_id"],
                    "iscrowd": segment.get("iscrowd", 0),
                    "area": area,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "segmentation": {"size": list(ids_HW.shape), "counts": rle["counts"].decode("ascii")},
                }
            )
    return {"id": annotation["image_id"], "height": ids_HW.shape[0], "width": ids_HW.shape[1]}, found
