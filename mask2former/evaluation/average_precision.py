"""COCO's average precision (AP), on boxes, on masks, and on their boundaries.

faster-coco-eval computes it in C++ on all cores; tests show that it gives pycocotools' figures. Boundary AP is AP with
the smaller of mask IoU and boundary IoU (Boundary IoU, arXiv:2103.16562, Sec. 5).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from faster_coco_eval.core import mask as fast_mask
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray

from mask2former.processes import num_cores

__all__ = ["DILATION_RATIO", "TASKS", "AveragePrecision", "average_precision"]

TASKS = ("bbox", "segm", "boundary")
DILATION_RATIO = 0.02  # thickness of a boundary relative to the image's diagonal, as in the paper

_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_NUM_SUMMARY_LINES = 12  # COCO's summary; faster-coco-eval adds recall at IoU 0.5 and 0.75

#: The content of a COCO annotation file, or results: `image_id`, `category_id`, `score`, and `bbox` or `segmentation`.
Content = Mapping[str, Any]
Results = Sequence[Mapping[str, Any]]


class AveragePrecision(NamedTuple):
    """AP in percent; NaN where there is no object to find."""

    overall: dict[str, float]  # AP, AP50, AP75, APs, APm, APl
    by_class: list[float]  # AP of each category, in the order of category ids
    summary: str  # COCO's twelve lines


def average_precision(
    ground_truth: Content,
    results: Results,
    task: str,
    *,
    image_ids: Iterable[Any] | None = None,
    dilation_ratio: float = DILATION_RATIO,
    use_pycocotools: bool = False,
) -> AveragePrecision:
    """AP of results in COCO's format.

    Args:
        ground_truth: `images`, `annotations` and `categories`, see `read_ground_truth`. Ids of images may be texts.
        results: every entry has a `bbox` (x, y, width, height) for task "bbox", else a `segmentation` in run lengths;
            areas of results, which decide about "small", "medium" and "large", come from the same.
        task: one of `TASKS`.
        image_ids: judge these images only.
        dilation_ratio: of task "boundary".
        use_pycocotools: let the official implementation compute it, which knows no "boundary" and takes longer.
    """
    if task not in TASKS or (use_pycocotools and task == "boundary"):
        raise ValueError(f"task {task!r} is unknown; choose from: {', '.join(TASKS[:2] if use_pycocotools else TASKS)}")
    if dilation_ratio <= 0:
        raise ValueError(f"the dilation ratio must be above 0 (the paper's is {DILATION_RATIO}), got {dilation_ratio}")
    numbers = {image_id: number for number, image_id in enumerate(sorted(_ids(ground_truth)), start=1)}
    truth = _renumbered_truth(ground_truth, task, numbers)
    found = _renumbered_results(results, task, numbers)
    if task != "bbox":
        _check_run_lengths(found, truth["images"])
    wanted = set(numbers if image_ids is None else image_ids)
    if wanted - set(numbers):
        raise ValueError(f"image {next(iter(wanted - set(numbers)))!r} is to be judged, but not in the ground truth")
    selected = sorted(numbers[image_id] for image_id in wanted)
    run = _run_pycocotools if use_pycocotools else _run_faster_coco_eval
    judged, summary = run(truth, found, task, selected, dilation_ratio)
    overall = {name: _percent(value) for name, value in zip(_NAMES, judged.stats, strict=False)}
    # (IoU thresholds, recalls, categories, area ranges, numbers of detections): all areas, and the largest number
    precision_TRK: NDArray[np.float64] = judged.eval["precision"][:, :, :, 0, -1]
    means = [precision_TR[precision_TR > -1] for precision_TR in np.moveaxis(precision_TRK, 2, 0)]
    by_class = [float(100 * values.mean()) if values.size else math.nan for values in means]
    return AveragePrecision(overall, by_class, summary)


class _Evaluation(COCOeval_faster):  # type: ignore[misc]  # the library has no types
    """faster-coco-eval with boundaries as thick as those of the paper's code.

    Their thickness is ratio times diagonal, rounded; where that is an exact half (225 x 300 pixels: 7.5) the paper's
    code rounds to the even number, and the library down.
    """

    def _prepare(self) -> None:
        super()._prepare()
        if not self.params.compute_boundary:
            return
        ratios = {
            number: ratio
            for number, image in self.cocoGt.imgs.items()
            if (ratio := _ratio_of_exact_half(image["height"], image["width"], self.boundary_dilation_ratio))
        }
        for annotation in itertools.chain(self.cocoGt.anns.values(), self.cocoDt.anns.values()):
            if annotation["image_id"] in ratios and "rle" in annotation:
                ratio = ratios[annotation["image_id"]]
                annotation["boundary"] = fast_mask.rleToBoundary(annotation["rle"], ratio)


def _ratio_of_exact_half(height: int, width: int, ratio: float) -> float | None:
    """The ratio that gives the boundary's thickness without rounding, where rounding is ambiguous; else None."""
    diagonal = math.hypot(height, width)
    thickness = ratio * diagonal
    if abs(thickness % 1 - 0.5) > 1e-6:
        return None
    return max(1, round(thickness)) / diagonal


def _run_faster_coco_eval(
    truth: dict[str, Any], found: list[dict[str, Any]], task: str, image_numbers: list[int], dilation_ratio: float
) -> tuple[Any, str]:
    lines: list[str] = []
    coco = COCO(truth)
    judged = _Evaluation(
        coco,
        coco.loadRes(found),
        task,
        boundary_dilation_ratio=dilation_ratio,
        boundary_cpu_count=num_cores(),
    )
    judged.params.imgIds = image_numbers
    judged.evaluate()
    judged.accumulate()
    judged.print_function = lines.append
    judged.summarize()
    return judged, "\n".join(lines[:_NUM_SUMMARY_LINES])


def _run_pycocotools(
    truth: dict[str, Any], found: list[dict[str, Any]], task: str, image_numbers: list[int], _: float
) -> tuple[Any, str]:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        coco = pycocotools.coco.COCO()
        coco.dataset = truth
        coco.createIndex()
        judged = pycocotools.cocoeval.COCOeval(coco, coco.loadRes(found) if found else _without_objects(truth), task)
        judged.params.imgIds = image_numbers
        judged.evaluate()
        judged.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as lines:
        judged.summarize()
    return judged, lines.getvalue().rstrip()


def _without_objects(truth: dict[str, Any]) -> pycocotools.coco.COCO:
    coco = pycocotools.coco.COCO()  # its `loadRes` fails for an empty list
    coco.dataset = {**truth, "annotations": []}
    coco.createIndex()
    return coco


def _ids(ground_truth: Content) -> list[Any]:
    counts = Counter(image["id"] for image in ground_truth["images"])
    twice = [image_id for image_id, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"the ground truth lists image {twice[0]!r} {counts[twice[0]]} times")
    return list(counts)


def _renumbered_truth(ground_truth: Content, task: str, numbers: Mapping[Any, int]) -> dict[str, Any]:
    """The ground truth with images and annotations numbered 1, 2, ...; the original is left alone.

    faster-coco-eval takes integers only for ids of images, and both implementations take an object whose id is 0 for
    "not found". Images keep their order, which decides among results of the same score.
    """
    images = [{**image, "id": numbers[image["id"]]} for image in ground_truth["images"]]
    images.sort(key=lambda image: image["id"])
    _require_all(images, ("height", "width"), "image", "the ground truth", numbers=None)
    needed = ("image_id", "category_id", "area", _shape_key(task))
    _require_all(ground_truth["annotations"], needed, "annotation", "the ground truth", numbers)
    annotations = [
        {**entry, "id": number, "image_id": numbers[entry["image_id"]], "iscrowd": entry.get("iscrowd", 0)}
        for number, entry in enumerate(ground_truth["annotations"], start=1)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": list(ground_truth["categories"])}


def _renumbered_results(results: Results, task: str, numbers: Mapping[Any, int]) -> list[dict[str, Any]]:
    """What one task needs of the results. Boxes would take precedence over masks when areas are computed."""
    kept = ("category_id", "score", _shape_key(task))
    _require_all(results, ("image_id", *kept), "entry", "the results", numbers)
    return [{**{key: entry[key] for key in kept}, "image_id": numbers[entry["image_id"]]} for entry in results]


def _check_run_lengths(found: list[dict[str, Any]], images: list[dict[str, Any]]) -> None:
    """Masks of another size than their image's would be compared without complaint."""
    for index, entry in enumerate(found):
        image, shape = images[entry["image_id"] - 1], entry["segmentation"]
        if not isinstance(shape, Mapping) or not isinstance(shape.get("counts"), (str, bytes)):
            raise ValueError(f"entry {index} of the results must have compressed run lengths as its segmentation")
        size, wanted = tuple(shape["size"]), (image["height"], image["width"])
        if size != wanted:
            raise ValueError(f"entry {index} of the results has a mask of (height, width) {size}, its image {wanted}")


def _shape_key(task: str) -> str:
    return "bbox" if task == "bbox" else "segmentation"


def _require_all(
    entries: Results, keys: Sequence[str], kind: str, place: str, numbers: Mapping[Any, int] | None
) -> None:
    """Raises ValueError at the first entry that lacks a key, or whose image has no number."""
    for index, entry in enumerate(entries):
        absent = next((key for key in keys if key not in entry), None)
        if absent is not None:
            raise ValueError(f"{kind} {index} of {place} has no {absent!r}")
        if numbers is not None and entry["image_id"] not in numbers:
            raise ValueError(
                f"{kind} {index} of {place} is of image {entry['image_id']!r}, which the ground truth lacks"
            )


def _percent(value: float) -> float:
    return float(100 * value) if value >= 0 else math.nan  # COCO's -1: nothing to find
