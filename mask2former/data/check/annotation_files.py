"""Annotation files as they are written, before a loader stops at their first mistake or leaves out what it cannot use.

What kind of file it is shows its content: objects of pictures (COCO), segments (COCO panoptic) or videos (YouTube-VIS).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mask2former.data.check.problems import Findings, Kind
from mask2former.data.datasets.annotation_files import complaints_name, read_json

__all__ = ["inspect_annotation_file"]

Entry = Mapping[str, Any]


def inspect_annotation_file(path: str, known_ids: frozenset[int] | None) -> Findings:
    """
    Args:
        path: a JSON file.
        known_ids: categories that the data set has; None: those that the file lists.

    Raises:
        ValueError: the file is damaged, or of another format.
    """
    content = read_json(path)
    findings = Findings(path, is_picture=False)
    with complaints_name(path):
        annotations = content.get("annotations") or ()
        listed = content["videos"] if "videos" in content else content.get("images", ())
        if known_ids is None and content.get("categories"):
            known_ids = frozenset(category["id"] for category in content["categories"])
        _report_repeated(findings, Kind.REPEATED_IMAGE_ID, (entry["id"] for entry in listed), "id {}")
        if "videos" in content:
            _inspect_tracks(findings, listed, annotations, known_ids)
        elif any("segments_info" in annotation for annotation in annotations):
            _inspect_segments(findings, listed, annotations, known_ids)
        else:
            _inspect_objects(findings, listed, annotations, known_ids)
    return findings


def _inspect_objects(
    findings: Findings, images: Iterable[Entry], objects: Iterable[Entry], known_ids: frozenset[int] | None
) -> None:
    names = {image["id"]: image.get("file_name", f"picture {image['id']}") for image in images}
    _report_repeated(findings, Kind.REPEATED_ANNOTATION_ID, (entry["id"] for entry in objects), "annotation {}")
    for entry in objects:
        where = f"{names.get(entry['image_id'])}: annotation {entry['id']}"
        if entry["image_id"] not in names:
            findings.report(Kind.STRAY_ANNOTATION, f"annotation {entry['id']} of picture {entry['image_id']!r}")
        _check_category(findings, entry, known_ids, where)
        shape = entry.get("segmentation")
        # An object without any segmentation is kept by Detectron2's loader, and found when its picture is looked at.
        if (
            isinstance(shape, list)
            and shape
            and not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in shape)
        ):
            findings.report(Kind.DROPPED_OBJECT, where)


def _inspect_segments(
    findings: Findings, images: Iterable[Entry], annotations: Iterable[Entry], known_ids: frozenset[int] | None
) -> None:
    listed = {image["id"]: image.get("file_name", f"picture {image['id']}") for image in images}
    for annotation in annotations:
        if listed and annotation["image_id"] not in listed:
            findings.report(Kind.STRAY_ANNOTATION, f"{annotation['file_name']} of picture {annotation['image_id']!r}")
        for segment in annotation["segments_info"]:
            where = f"{annotation['file_name']}: segment {segment['id']}"
            _check_category(findings, segment, known_ids, where)
    used = {annotation["image_id"] for annotation in annotations}
    for image_id, name in listed.items():
        if image_id not in used:
            findings.report(Kind.UNUSED_PICTURE, name)


def _inspect_tracks(
    findings: Findings, videos: Iterable[Entry], tracks: Iterable[Entry], known_ids: frozenset[int] | None
) -> None:
    num_frames = {video["id"]: len(video["file_names"]) for video in videos}
    _report_repeated(findings, Kind.REPEATED_ANNOTATION_ID, (track["id"] for track in tracks), "object {}")
    for track in tracks:
        where = f"object {track['id']} of video {track['video_id']!r}"
        if track["video_id"] not in num_frames:
            findings.report(Kind.STRAY_ANNOTATION, where)
            continue
        counts = len(track["segmentations"]), len(track["bboxes"])
        expected = num_frames[track["video_id"]]
        if set(counts) != {expected}:
            findings.report(
                Kind.FRAME_COUNT, f"{where}: {counts[0]} segmentations and {counts[1]} boxes for {expected} frames"
            )
        _check_category(findings, track, known_ids, where)


def _check_category(findings: Findings, entry: Entry, known_ids: frozenset[int] | None, where: str) -> None:
    if known_ids is not None and entry["category_id"] not in known_ids:
        findings.report(Kind.UNKNOWN_CLASS, f"{where}: category {entry['category_id']}")


def _report_repeated(findings: Findings, kind: Kind, ids: Iterable[Any], text: str) -> None:
    for identifier, count in Counter(ids).items():
        if count > 1:
            findings.report(kind, f"{text.format(repr(identifier))} ({count} times)")
