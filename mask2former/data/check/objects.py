"""Objects with polygons or run lengths, as COCO, ADE20K, Cityscapes and YouTube-VIS have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from mask2former.data.check.classes import KnownClasses
from mask2former.data.check.problems import ClassCounts, Findings, Kind
from mask2former.data.masks import decode_segmentations

__all__ = ["inspect_objects", "run_length_counts"]

_CORNERS = (BoxMode.XYXY_ABS, BoxMode.XYXY_REL)


def inspect_objects(
    findings: Findings, record: Mapping[str, Any], size: tuple[int, int] | None, classes: KnownClasses
) -> bool:
    """Looks at the class, the box and the mask of each object of a picture.

    Args:
        size: (H, W) of the picture; None leaves the masks out.

    Returns:
        Whether there is an object.
    """
    objects = record["annotations"]
    counts = findings.classes["instance"] = ClassCounts()
    for number, entry in enumerate(objects):
        where = f"{findings.name}: object {entry.get('id', number)}"
        category = entry["category_id"]
        if classes.instance is not None and category not in classes.instance:
            findings.report(Kind.UNKNOWN_CLASS, f"{where}: class {category}")
        counts.num_crowds += bool(entry.get("iscrowd", 0))
        if "bbox" in entry and not _has_extent(entry["bbox"], entry.get("bbox_mode", BoxMode.XYWH_ABS)):
            findings.report(Kind.BAD_BOX, f"{where}: {_short(entry['bbox'])}")
        counts.add(category, _inspect_mask(findings, entry.get("segmentation"), size, where))
    return bool(objects)


def run_length_counts(counts: str | bytes) -> list[int]:
    """The lengths in COCO's compressed run lengths: 5 bits in each character, all but the first three as differences.

    pycocotools decodes a text that is cut off without complaint and fills the rest of the mask with whatever lies in
    memory, so lengths must be added up to know whether all of them are there.

    Raises:
        ValueError: the text ends inside a number, or has a character that none is written with.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts.encode("latin-1") if isinstance(counts, str) else counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"run lengths have the character {chr(character)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths end inside a number")
    return lengths


def _inspect_mask(findings: Findings, shape: Any, size: tuple[int, int] | None, where: str) -> int:
    """The number of pixels of a mask; 0 if it cannot be drawn."""
    if not shape:
        findings.report(Kind.NO_SHAPE, where)
        return 0
    if size is None:
        return 0
    try:
        _check_numbers(shape)
        num_pixels = int(np.count_nonzero(decode_segmentations([shape], size)))
    except (ValueError, OverflowError) as error:
        findings.report(Kind.BAD_SHAPE, f"{where}: {_short(error)}")
        return 0
    if num_pixels == 0:
        findings.report(Kind.EMPTY_MASK, where)
    return num_pixels


def _check_numbers(shape: Any) -> None:
    """Raises ValueError for what COCO's functions draw without complaint: numbers that are none, and missing runs."""
    if isinstance(shape, list):
        if not all(np.isfinite(np.asarray(polygon, dtype=np.float64)).all() for polygon in shape):
            raise ValueError("a polygon has coordinates that are no numbers")
    elif isinstance(shape, Mapping):
        counts = shape["counts"]
        lengths = counts if isinstance(counts, list) else run_length_counts(counts)
        height, width = shape["size"]
        if min(lengths, default=0) < 0 or sum(lengths) != height * width:
            raise ValueError(f"run lengths of {sum(lengths)} pixels for a mask of {height} x {width}")


def _has_extent(box: Any, mode: BoxMode) -> bool:
    numbers = np.asarray(box, dtype=np.float64)
    if len(numbers) != 4:  # of rotated boxes, width and height stand in the middle
        return bool(np.isfinite(numbers).all() and (numbers[2:4] > 0).all())
    extent = numbers[2:] - numbers[:2] if mode in _CORNERS else numbers[2:]
    return bool(np.isfinite(numbers).all() and (extent > 0).all())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
