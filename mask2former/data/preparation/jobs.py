"""Many small files, made in worker processes, each of them whole or not there at all.

A preparation can be stopped at any time and started again: a file that exists is finished, because files are written
under another name and renamed when they are complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
from tqdm import tqdm

from mask2former.processes import map_in_processes, num_cores


@dataclass(frozen=True)
class PictureJob:
    """One picture to look at.

    Attributes:
        source: the file that is read; errors name it.
    """

    source: Path

    @property
    def key(self) -> str:
        """What the data set calls the picture."""
        return self.source.stem


@dataclass(frozen=True)
class FileJob(PictureJob):
    """One file to make.

    Attributes:
        target: the file that is made; it must be written atomically.
    """

    target: Path


Job = TypeVar("Job", bound=PictureJob)
MakingJob = TypeVar("MakingJob", bound=FileJob)
Result = TypeVar("Result")


class Outcome(NamedTuple):
    """What a preparation did."""

    num_written: int
    num_kept: int  # were there already

    def __str__(self) -> str:
        return f"{self.num_written} written, {self.num_kept} already there"


def total(outcomes: Iterable[Outcome]) -> Outcome:
    """The sum of several outcomes."""
    written, kept = (sum(numbers) for numbers in zip(*outcomes, strict=True))
    return Outcome(written, kept)


def make_files(
    function: Callable[[MakingJob], object], jobs: Sequence[MakingJob], *, description: str, num_workers: int | None
) -> Outcome:
    """Calls `function` for every job whose target is not there yet."""
    pending = unfinished_jobs(jobs)
    for _ in process(
        function, pending, description=description, num_workers=num_workers, num_done=len(jobs) - len(pending)
    ):
        pass
    return Outcome(len(pending), len(jobs) - len(pending))


def unfinished_jobs(jobs: Sequence[MakingJob]) -> list[MakingJob]:
    """The jobs whose target is missing or empty; the folders of the targets exist afterwards."""
    finished: dict[Path, set[str]] = {}
    for folder in {job.target.parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
        with os.scandir(folder) as entries:  # one listing instead of a question per file
            finished[folder] = {entry.name for entry in entries if entry.stat().st_size > 0}
    return [job for job in jobs if job.target.name not in finished[job.target.parent]]


def process(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    description: str,
    num_workers: int | None,
    num_done: int = 0,
) -> Iterator[Result]:
    """The results of `function` for all jobs, in their order, under a progress bar.

    Args:
        function: defined at the top level of a module, so that worker processes find it.
        num_workers: number of processes, None for one per core; 1 works in this process.
        num_done: jobs of an earlier run, for the progress bar only.

    Raises:
        ValueError, OSError: the first error of a job, with the name of its file. What other jobs wrote stays.
    """
    num_workers = num_cores() if num_workers is None else num_workers
    if num_workers < 1:
        raise ValueError(f"--num-workers must be 1 or more, got {num_workers}")
    num_workers = min(num_workers, len(jobs))
    # Nothing is shown where stderr is no terminal.
    progress = {"desc": description, "unit": "file", "initial": num_done, "disable": None if jobs else True}
    results = map_in_processes(partial(_call, function), jobs, num_workers, from_copies=False, initialize=_use_one_core)
    try:
        with tqdm(total=num_done + len(jobs), **progress) as bar:
            for result in results:
                yield result
                bar.update()
    except ChildProcessError as error:
        raise ChildProcessError(
            f"{error}; finished files stay, run again with a smaller --num-workers than {num_workers}"
        ) from error


def _use_one_core() -> None:
    cv2.setNumThreads(1)


def _call(function: Callable[[Job], Result], job: Job) -> Result:
    try:
        return function(job)
    except (OSError, ValueError, LookupError) as error:
        if str(job.source) in str(error):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{job.source}: {type(error).__name__}: {error}") from error
