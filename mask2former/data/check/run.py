"""The whole check: annotation file, list of records, then every picture in worker processes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data.check.annotation_files import inspect_annotation_file
from mask2former.data.check.classes import KnownClasses
from mask2former.data.check.problems import Findings, Kind
from mask2former.data.check.record_list import inspect_list
from mask2former.data.check.records import inspect_record
from mask2former.data.check.tally import Tally
from mask2former.data.datasets.catalog import find_split
from mask2former.data.datasets.loaders import read_split, require_files
from mask2former.data.drawing import spread
from mask2former.data.preparation.jobs import PictureJob, process

__all__ = ["CheckedDataset", "check_dataset"]

Record = Mapping[str, Any]
#: Fewer are looked at in less time than worker processes need to start.
_MIN_FOR_WORKERS = 500


@dataclass(frozen=True)
class CheckedDataset:
    """A data set and what was found.

    Attributes:
        records: all of them; empty when they could not be loaded.
        num_checked: of how many records the files were looked at.
    """

    name: str
    records: Sequence[Record]
    num_checked: int
    classes: KnownClasses
    tally: Tally

    @property
    def has_errors(self) -> bool:
        return any(kind.is_error for kind in self.tally.problems)


@dataclass(frozen=True)
class _RecordJob(PictureJob):
    record: Record


def check_dataset(name: str, *, max_images: int | None = None, num_workers: int | None = None) -> CheckedDataset:
    """Looks for everything in a registered data set that would disturb training.

    Args:
        max_images: look at the files of so many records (pictures or videos), spread over the data set; None: of all.
        num_workers: number of processes; None: one per core, or none beside this one for a small data set.

    Raises:
        ValueError: the name is not registered, or a number is not positive.
        FileNotFoundError: a file or folder of the data set is missing; the message shows the expected tree.
    """
    if name not in DatasetCatalog.list():
        known = DatasetCatalog.list()
        close = difflib.get_close_matches(name, known, n=5)
        hint = f"similar names: {', '.join(close)}" if close else f"choose from: {', '.join(sorted(known))}"
        raise ValueError(f"data set {name!r} is not registered; {hint}")
    if max_images is not None and max_images < 1:
        raise ValueError(f"--max-images must be 1 or more, got {max_images}")
    require_files(name)
    tally = Tally()
    _check_annotation_file(name, tally)
    records = _load(name, tally)
    # After loading: Detectron2's loader of COCO files completes the metadata.
    metadata = MetadataCatalog.get(name)
    classes = KnownClasses.of(metadata)
    if records:
        tally.add(inspect_list(name, records, metadata))
    chosen = list(records) if max_images is None else spread(records, max_images)
    _check_pictures(name, chosen, classes, num_workers, tally)
    if len(chosen) == len(records):
        _look_for_shift(name, classes, tally)
    return CheckedDataset(name, records, len(chosen), classes, tally)


def _check_annotation_file(name: str, tally: Tally) -> None:
    metadata = MetadataCatalog.get(name)
    path = metadata.get("panoptic_json") or metadata.get("json_file")
    if path is None:
        return
    try:
        findings = inspect_annotation_file(path, KnownClasses.of(metadata).file_ids)
    except ValueError:
        return  # The loader, which comes next, says what is wrong with the file, or knows its format.
    tally.add(findings)


def _load(name: str, tally: Tally) -> Sequence[Record]:
    split = find_split(name)
    try:
        records: Sequence[Record] = DatasetCatalog.get(name) if split is None else read_split(split)
        if not isinstance(records, Sequence) or not all(isinstance(record, Mapping) for record in records):
            raise TypeError(f"the function registered for {name!r} must return a list of dicts")
        if not records:
            raise ValueError(f"data set {name!r} has no pictures")
    # What loaders of all origins raise about files; assertions come from pycocotools and Detectron2.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        findings = Findings(name, is_picture=False)
        findings.report(Kind.NOT_LOADED, str(error) or type(error).__name__)
        tally.add(findings)
        return []
    return records


def _check_pictures(
    name: str, records: Sequence[Record], classes: KnownClasses, num_workers: int | None, tally: Tally
) -> None:
    if num_workers is None and len(records) < _MIN_FOR_WORKERS:
        num_workers = 1
    jobs = [_RecordJob(Path(str(record.get("file_name", name))), record) for record in records]
    inspect = partial(_inspect_job, classes)
    for pictures in process(inspect, jobs, description=f"checking {name}", num_workers=num_workers):
        for findings in pictures:
            tally.add(findings)


def _inspect_job(classes: KnownClasses, job: _RecordJob) -> list[Findings]:
    return inspect_record(job.record, classes)


def _look_for_shift(name: str, classes: KnownClasses, tally: Tally) -> None:
    """Labels 1..K instead of 0..K-1: often the same tool wrote all of them, without taking 1 away."""
    if classes.semantic is None or "semantic" not in tally.classes:
        return
    seen, num_classes = tally.classes["semantic"].segments, len(classes.semantic)
    if sorted(seen) == list(range(1, num_classes + 1)):
        findings = Findings(name, is_picture=False)
        findings.report(Kind.SHIFTED, f"labels must be 0..{num_classes - 1}: take 1 away from all but the ignored ones")
        tally.add(findings)
