"""What shows only when the records of a data set are compared with each other, and with folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from mask2former.data.check.problems import Findings, Kind

__all__ = ["inspect_list"]

Record = Mapping[str, Any]
_LABEL_KEYS = ("pan_seg_file_name", "sem_seg_file_name", "annotations")
#: Folders of the metadata, and where records name the files in them.
_LABEL_FOLDERS = {"panoptic_root": "pan_seg_file_name", "sem_seg_root": "sem_seg_file_name"}


def inspect_list(name: str, records: Sequence[Record], metadata: Metadata) -> Findings:
    """Pictures listed twice, records without the labels that others have, and label pictures that no record names."""
    findings = Findings(name, is_picture=False)
    files = [record.get("file_name") or next(iter(record.get("file_names", ())), None) for record in records]
    _report_repeated(findings, Kind.REPEATED_FILE, files)
    _report_repeated(findings, Kind.REPEATED_IMAGE_ID, (record.get("image_id") for record in records))
    for key in _LABEL_KEYS:
        without = [file for file, record in zip(files, records, strict=True) if key not in record]
        if 0 < len(without) < len(records):
            findings.report(Kind.BROKEN_RECORD, f"{without[0]} has no {key!r}, which others have", len(without))
    for folder_key, key in _LABEL_FOLDERS.items():
        folder = metadata.get(folder_key)
        if folder is not None and PathManager.isdir(folder):
            _report_unused(findings, folder, {os.path.basename(record[key]) for record in records if key in record})
    return findings


def _report_repeated(findings: Findings, kind: Kind, values: Iterable[Any]) -> None:
    for value, count in Counter(values).items():
        if count > 1 and value is not None:
            findings.report(kind, f"{value} ({count} times)", count - 1)


def _report_unused(findings: Findings, folder: str, used: set[str]) -> None:
    """Label pictures whose picture was deleted, or is missing from the annotation file."""
    suffixes = tuple({os.path.splitext(name)[1] for name in used})
    for file_name in sorted(PathManager.ls(folder)):
        if file_name.endswith(suffixes) and file_name not in used:
            findings.report(Kind.UNUSED_LABEL, os.path.join(folder, file_name))
