"""AP of a file of results, without a model or a registered dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask

from mask2former.evaluation.average_precision import DILATION_RATIO, AveragePrecision, average_precision
from mask2former.evaluation.instance_ground_truth import read_ground_truth

__all__ = ["evaluate_result_file"]


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
    results = _read_results(result_file)
    if task == "bbox":
        results = [_with_box_of_mask(result) for result in results]
    try:
        return average_precision(ground_truth, results, task, dilation_ratio=dilation_ratio)
    except ValueError as error:
        raise ValueError(f"{result_file} cannot be judged by {ground_truth_file}: {error}") from error


def _read_results(path: str) -> list[dict[str, Any]]:
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"result file {path!r} does not exist")
    try:
        with PathManager.open(path) as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON, or cut off: {error}") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{path} is no file of COCO results: it must hold a list of objects")
    return content


def _with_box_of_mask(result: Mapping[str, Any]) -> dict[str, Any]:
    shape = result.get("segmentation")
    return {**result, "bbox": coco_mask.toBbox(shape).tolist()} if isinstance(shape, Mapping) else dict(result)
