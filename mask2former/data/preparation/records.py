"""One JSON file about many pictures, made so that an interrupted run loses nothing.

The record of each picture is appended to a hidden journal beside the JSON file as soon as it is known; the JSON file is
written last, in one step, and the journal removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mask2former.data.preparation.jobs import FileJob, Job, Outcome, process, unfinished_jobs
from mask2former.files import write_atomically

Record = dict[str, Any]


def make_files_and_json(
    function: Callable[[Job], Record],
    jobs: Sequence[Job],
    json_path: Path,
    assemble: Callable[[list[Record]], dict[str, Any]],
    *,
    num_workers: int | None,
) -> Outcome:
    """Writes `json_path` from the records that `function` gives for all jobs.

    A JSON file that lists exactly the pictures of the jobs is kept as long as all targets of FileJobs are there.
    Otherwise it is made anew with all of them, because segment ids of other programs would not fit ours.

    Args:
        function: writes the target of a FileJob and returns what the JSON file says about it.
        assemble: makes the content of the JSON file from the records, in the order of the jobs.
    """
    missing = {job.key for job in unfinished_jobs([job for job in jobs if isinstance(job, FileJob)])}
    keys = [job.key for job in jobs]
    if not missing and _listed_pictures(json_path) == set(keys):
        return Outcome(0, len(jobs))
    json_path.unlink(missing_ok=True)
    journal = json_path.with_name(f".{json_path.name}.journal")
    records = _read_journal(journal)
    pending = [job for job in jobs if job.key not in records or job.key in missing]
    num_kept = len(jobs) - len(pending)
    results = process(function, pending, description=json_path.stem, num_workers=num_workers, num_done=num_kept)
    with open(journal, "a", encoding="utf-8") as file:
        for job, record in zip(pending, results, strict=True):
            file.write(json.dumps([job.key, record]) + "\n")
            file.flush()
            records[job.key] = record
    content = json.dumps(assemble([records[key] for key in keys])).encode()
    write_atomically(json_path, lambda file: file.write(content))
    journal.unlink()
    return Outcome(len(pending), num_kept)


def _listed_pictures(json_path: Path) -> set[str] | None:
    """Ids of the pictures in a COCO file; None if it is missing or damaged."""
    try:
        content = json.loads(json_path.read_bytes())
        if "images" in content:
            return {image["id"] for image in content["images"]}
        return {annotation["image_id"] for annotation in content["annotations"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _read_journal(path: Path) -> dict[str, Record]:
    """The records of an interrupted run; a line that it did not complete is cut off."""
    records: dict[str, Record] = {}
    if not path.exists():
        return records
    with open(path, "rb+") as file:
        end = 0
        for line in file:
            try:
                key, record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            records[key] = record
            end += len(line)
        file.truncate(end)
    return records
