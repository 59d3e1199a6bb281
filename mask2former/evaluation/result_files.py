"""The result files that evaluations write: how they are read, and AP of one without a model or registered dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePath
from typing import Any

from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask

from mask2former.data.datasets.annotation_files import damaged
from mask2former.evaluation.average_precision import DILATION_RATIO, AveragePrecision, average_precision
from mask2former.evaluation.instance_ground_truth import read_ground_truth

__all__ = ["evaluate_result_file", "picture_key", "read_result_file", "read_result_list"]


def evaluate_result_file(
    ground_truth_file: str, result_file: str, task: str, *, dilation_ratio: float = DILATION_RATIO
) -> AveragePrecision:
    """AP of `coco_instances_results.json` or another file of results in COCO's format.

    Boxes in the file are not read where there are masks: areas, and for task "bbox" the boxes, come from the masks.
    (Published models write boxes of zeros.)

    Args:
        ground_truth_file: COCO annotations.
        result_file: a JSON list of dicts with `image_id`, `category_id`, `score` and `segmentation` in run lengths.
        task: "bbox", "segm" or "boundary".
        dilation_ratio: thickness of a boundary relative to the image's diagonal.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or not what it should be; the message names it.
    """
    ground_truth = read_ground_truth(ground_truth_file, ("images", "annotations", "categories"))
    results = read_result_list(result_file)
    if task == "bbox":
        results = [_with_box_of_mask(result) for result in results]
    try:
        return average_precision(ground_truth, results, task, dilation_ratio=dilation_ratio)
    except ValueError as error:
        raise ValueError(f"{result_file} cannot be judged by {ground_truth_file}: {error}") from error


def read_result_file(path: str) -> Any:
    """What a JSON file of results holds.

    Raises:
        FileNotFoundError, ValueError: it is missing, cut off or no JSON; the message names it.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"result file {path!r} does not exist")
    try:
        with PathManager.open(path) as file:
            return json.load(file)
    except ValueError as error:  # not JSON, or not text
        raise damaged(path, error) from error


def read_result_list(path: str) -> list[dict[str, Any]]:
    """The entries of a file that must be a list of objects, as instances and semantic labels are; raises as above."""
    content = read_result_file(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise damaged(path, "results must be a list of objects")
    return content


def picture_key(file_names: Collection[str]) -> Callable[[str], str]:
    """What tells a picture from the others of a dataset in results, which may come from another machine: the stem of
    its file name, or the whole where several pictures have the same stem."""
    stems = {_stem(name) for name in file_names}
    return _stem if len(stems) == len(file_names) else str


def _stem(file_name: str) -> str:
    return PurePath(file_name).stem


def _with_box_of_mask(result: Mapping[str, Any]) -> dict[str, Any]:
    shape = result.get("segmentation")
    return {**result, "bbox": coco_mask.toBbox(shape).tolist()} if isinstance(shape, Mapping) else dict(result)
