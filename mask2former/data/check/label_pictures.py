"""Label pictures: panoptic ids against their list of segments, and semantic class maps."""

# (H, W) pixels, V different values of a map.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray

from mask2former.data.check.classes import KnownClasses
from mask2former.data.check.problems import ClassCounts, Findings, Kind
from mask2former.data.masks import rgb_to_id
from mask2former.data.reading import BrokenSampleError, check_size, read_class_map, read_panoptic_ids

__all__ = ["count_values", "inspect_panoptic", "inspect_semantic"]

_NUM_NAMED = 3  # values that an example names
_VOID_ID = 0  # of panoptic pictures

Record = Mapping[str, Any]


def inspect_panoptic(findings: Findings, record: Record, size: tuple[int, int] | None, classes: KnownClasses) -> bool:
    """Compares the ids in the panoptic picture of a record with its `segments_info`.

    Returns:
        Whether the record lists a segment.
    """
    segments = record["segments_info"]
    path = record["pan_seg_file_name"]
    ids = [int(segment["id"]) for segment in segments]
    repeated = [identifier for identifier, count in Counter(ids).items() if count > 1]
    _report_values(findings, Kind.REPEATED_ID, path, "id", repeated)
    if classes.panoptic is not None:
        unknown = [segment["category_id"] for segment in segments if segment["category_id"] not in classes.panoptic]
        _report_values(findings, Kind.UNKNOWN_CLASS, path, "class", unknown)
    num_crowds = sum(bool(segment.get("iscrowd", 0)) for segment in segments)
    counts = findings.classes["panoptic"] = ClassCounts(num_crowds=num_crowds)
    rgb_HW3 = _read(findings, path, read_panoptic_ids, size)
    if rgb_HW3 is None:
        return bool(segments)
    num_pixels = dict(zip(*(column.tolist() for column in count_values(rgb_to_id(rgb_HW3))), strict=True))
    _report_values(findings, Kind.UNLISTED_ID, path, "id", sorted(num_pixels.keys() - {*ids, _VOID_ID}))
    _report_values(findings, Kind.ABSENT_ID, path, "id", [key for key in ids if key not in num_pixels])
    for segment in segments:
        counts.add(segment["category_id"], num_pixels.get(int(segment["id"]), 0))
    _note_void(findings, "panoptic", path, sum(num_pixels.get(key, 0) for key in set(ids)), rgb_HW3.shape)
    return bool(segments)


def inspect_semantic(findings: Findings, record: Record, size: tuple[int, int] | None, classes: KnownClasses) -> bool:
    """Looks at the class of every pixel of a record's semantic label picture.

    Returns:
        True: every pixel has a label, be it void.
    """
    path = record["sem_seg_file_name"]
    labels_HW = _read(findings, path, read_class_map, size)
    if labels_HW is None:
        return True
    counts = findings.classes["semantic"] = ClassCounts()
    num_labeled = 0
    unknown = []
    for label, num_pixels in zip(*(column.tolist() for column in count_values(labels_HW)), strict=True):
        if label == classes.ignore_label:
            continue
        num_labeled += num_pixels
        counts.add(label, num_pixels)
        if classes.semantic is not None and label not in classes.semantic:
            unknown.append(label)
    _report_values(findings, Kind.UNKNOWN_CLASS, path, "class", unknown)
    _note_void(findings, "semantic", path, num_labeled, labels_HW.shape)
    return True


def count_values(map_HW: NDArray[np.integer[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values of a label map in ascending order, (V,), and how many pixels have each, (V,).

    Label maps are made of long runs of one value, and only runs are sorted: ten times as fast as sorting pixels.
    """
    flat = map_HW.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(np.append(starts, flat.size))
    values_V, place = np.unique(flat[starts], return_inverse=True)
    return values_V, np.bincount(place, weights=lengths).astype(np.int64)


def _read(
    findings: Findings, path: str, read: Callable[[str], NDArray[Any]], size: tuple[int, int] | None
) -> NDArray[Any] | None:
    if not PathManager.isfile(path):
        findings.report(Kind.MISSING_FILE, path)
        return None
    try:
        labels = read(path)
    except BrokenSampleError as error:
        findings.report(Kind.UNREADABLE_FILE, error)
        return None
    if size is not None:
        try:
            check_size(path, labels.shape, size, findings.name)
        except BrokenSampleError as error:
            findings.report(Kind.LABEL_SIZE, error)
    return labels


def _report_values(findings: Findings, kind: Kind, path: str, what: str, values: Iterable[int]) -> None:
    """One example for all values of a picture."""
    values = list(values)
    if values:
        more = f" and {len(values) - _NUM_NAMED} more" if len(values) > _NUM_NAMED else ""
        findings.report(kind, f"{path}: {what} {', '.join(map(str, values[:_NUM_NAMED]))}{more}", len(values))


def _note_void(findings: Findings, form: Any, path: str, num_labeled: int, shape: tuple[int, ...]) -> None:
    findings.void[form] = 1 - num_labeled / (shape[0] * shape[1])
    if num_labeled == 0:
        findings.report(Kind.ONLY_VOID, path)
