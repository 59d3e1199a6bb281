"""What all preparations share: many small files, made in worker processes, each of them whole or not there at all.

A preparation can be stopped at any time and started again: a file that exists is finished, because files are written
under another name and renamed when they are complete.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from mask2former.files import write_atomically

_CHUNK = 16  # jobs a worker gets at a time: large enough to hide the transfer, small enough for a smooth progress bar


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
        return f"{self.num_written} files written, {self.num_kept} were there already"


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
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if num_workers < 1:
        raise ValueError(f"--num-workers must be 1 or more, got {num_workers}")
    num_workers = min(num_workers, len(jobs))
    with tqdm(total=num_done + len(jobs), initial=num_done, desc=description, unit="file", disable=not jobs) as bar:
        for result in _results(partial(_call, function), jobs, num_workers):
            yield result
            bar.update()


def _results(function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int) -> Iterator[Result]:
    if num_workers <= 1:
        yield from map(function, jobs)
        return
    # Forked workers start at once; elsewhere each of them imports the package first.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    chunk = max(1, min(_CHUNK, len(jobs) // (4 * num_workers)))
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker) as executor:
        try:
            yield from executor.map(function, jobs, chunksize=chunk)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was killed, probably because memory ran out; finished files stay, run again with a "
                f"smaller --num-workers than {num_workers}"
            ) from error
        finally:
            executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which ends its workers
    cv2.setNumThreads(1)  # one core per worker


def _call(function: Callable[[Job], Result], job: Job) -> Result:
    try:
        return function(job)
    except (OSError, ValueError, LookupError) as error:
        if str(job.source) in str(error):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{job.source}: {type(error).__name__}: {error}") from error


def require_inputs(paths: Iterable[Path], *, tree: str, origin: str) -> None:
    """Raises FileNotFoundError with the first path that is missing, the tree that is expected and where it is from."""
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise FileNotFoundError(
            f"{missing} does not exist. It comes with {origin}. Expected below the root of all data sets (--root, or "
            f"the environment variable DETECTRON2_DATASETS):\n{tree}"
        )


def list_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with a suffix, sorted by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.name[0] != ".")
    if not names:
        raise FileNotFoundError(f"{folder} holds no *{suffix}: unpack the data set again")
    return [folder / name for name in names]


def save_picture(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16], **options: Any) -> None:
    """Writes (H, W) or (H, W, 3) pixels in the format that the suffix names; a killed program leaves no half file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=Image.registered_extensions()[path.suffix], **options)
    write_atomically(path, lambda file: file.write(content.getbuffer()), sync=False)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or a copy of it where file systems do not allow that."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with open(source, "rb") as original:
            write_atomically(target, partial(shutil.copyfileobj, original), sync=False)


def boxes_xywh(labels_HW: NDArray[np.integer[Any]], num_labels: int) -> list[list[int] | None]:
    """The boxes [left, top, width, height] in pixels of the labels 1..num_labels; None for one that does not occur."""
    return [
        None
        if found is None
        else [found[1].start, found[0].start, found[1].stop - found[1].start, found[0].stop - found[0].start]
        for found in ndimage.find_objects(labels_HW, num_labels)
    ]
