"""One record: its picture, or the frames of its clip, and their labels. Pure functions that worker processes call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.utils.file_io import PathManager

from mask2former.data.check.classes import KnownClasses
from mask2former.data.check.label_pictures import inspect_panoptic, inspect_semantic
from mask2former.data.check.objects import inspect_objects
from mask2former.data.check.problems import Findings, Kind
from mask2former.data.reading import BrokenSampleError, check_size, read_image

__all__ = ["inspect_record"]

Record = Mapping[str, Any]
_Inspection = Callable[[Findings, Record, tuple[int, int] | None, KnownClasses], bool]
#: Where labels are found in a record, and who looks at them.
_INSPECTIONS: dict[str, _Inspection] = {
    "pan_seg_file_name": inspect_panoptic,
    "sem_seg_file_name": inspect_semantic,
    "annotations": inspect_objects,
}


def inspect_record(record: Record, classes: KnownClasses) -> list[Findings]:
    """What is wrong with a record and its files, and what they hold.

    Args:
        record: in Detectron2's format: `file_name`, or `file_names` of a clip with `annotations` for each frame.

    Returns:
        One entry for each picture; those of a clip come after an entry for the clip itself.
    """
    if "file_names" in record:
        return _inspect_clip(record, classes)
    findings, has_labels = _inspect_picture(record, classes)
    if not has_labels:
        findings.report(Kind.NO_LABELS, findings.name)
    return [findings]


def _inspect_clip(clip: Record, classes: KnownClasses) -> list[Findings]:
    file_names = clip["file_names"]
    name = str(file_names[0]) if file_names else f"video {clip.get('video_id')!r}"
    findings = Findings(name, is_picture=False)
    labels = clip.get("annotations")
    found = {"file_names": len(file_names), "length": clip.get("length", len(file_names))}
    if labels is not None:
        found["annotations"] = len(labels)
    if not file_names or len(set(found.values())) > 1:
        findings.report(Kind.FRAME_COUNT, f"{name}: " + ", ".join(f"{count} {key}" for key, count in found.items()))
    size = {key: clip[key] for key in ("height", "width") if key in clip}
    frames = []
    is_labeled = False
    for index, file_name in enumerate(file_names):
        objects = labels[index] if labels is not None and index < len(labels) else []
        frame, has_labels = _inspect_picture({"file_name": file_name, **size, "annotations": objects}, classes)
        frames.append(frame)
        is_labeled |= has_labels
    if file_names and not is_labeled:
        findings.report(Kind.NO_LABELS, name)
    return [findings, *frames]


def _inspect_picture(record: Record, classes: KnownClasses) -> tuple[Findings, bool]:
    """Findings, and whether there is any label."""
    if "file_name" not in record:
        findings = Findings(f"the record {sorted(record)}")
        findings.report(Kind.BROKEN_RECORD, f"{findings.name} has no 'file_name'")
        return findings, True
    findings = Findings(record["file_name"])
    findings.size = _inspect_image(findings, record)
    size = findings.size
    if size is None and "height" in record and "width" in record:
        size = record["height"], record["width"]
    has_labels = [
        _guarded(inspect, findings, record, size, classes) for key, inspect in _INSPECTIONS.items() if key in record
    ]
    return findings, any(has_labels)


def _inspect_image(findings: Findings, record: Record) -> tuple[int, int] | None:
    """Decodes the whole picture: that it is cut off shows only then."""
    path = record["file_name"]
    if not PathManager.isfile(path):
        findings.report(Kind.MISSING_FILE, path)
        return None
    try:
        height, width = read_image(path, "RGB").shape[:2]
    except BrokenSampleError as error:
        findings.report(Kind.UNREADABLE_FILE, error)
        return None
    if "height" in record and "width" in record:
        try:
            check_size(path, (height, width), (record["height"], record["width"]), "its annotation")
        except BrokenSampleError as error:
            findings.report(Kind.PICTURE_SIZE, error)
    return height, width


def _guarded(
    inspect: _Inspection, findings: Findings, record: Record, size: tuple[int, int] | None, classes: KnownClasses
) -> bool:
    """Runs one inspection. A record that somebody's own loader made may hold anything."""
    try:
        return inspect(findings, record, size, classes)
    except KeyError as error:
        findings.report(Kind.BROKEN_RECORD, f"{findings.name}: the entry {error} is missing")
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        findings.report(Kind.BROKEN_RECORD, f"{findings.name}: {error}")
    return True
