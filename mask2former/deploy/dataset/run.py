"""A whole run: inputs, an engine and the folder of results, joined so that restarting continues."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mask2former import processes
from mask2former.deploy.dataset.batches import BatchSegmenter, Record
from mask2former.deploy.dataset.cluster import segment_on_cluster
from mask2former.deploy.dataset.inputs import Inputs
from mask2former.deploy.dataset.local import segment_locally
from mask2former.deploy.dataset.results_folder import ResultsFolder
from mask2former.deploy.dataset.shards import shard_format
from mask2former.deploy.dataset.stopping import StopSignals
from mask2former.deploy.results import MaskFormat, Task
from mask2former.deploy.runtime import Segmenter

__all__ = ["ENGINES", "MASKS", "DatasetRun", "Summary"]

ENGINES = ("local", "ray")
MASKS = ("rle", "polygons", "none")

logger = logging.getLogger(__name__)

# Of a model's description: a run may go on somewhere else, after an update.
_DOES_NOT_MATTER = ("device", "versions")
_MOST_WORKERS = 8  # unless asked for: each holds the model


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        num_pictures: of the input.
        num_new: pictures that this run has finished, broken ones included.
        num_left: pictures that are neither done nor broken.
        num_results, num_broken: in the folder, of earlier runs, too.
        seconds: from the first picture on; the loading of models is part of it.
        signal: number of the signal that ended the run early, or None.
    """

    num_pictures: int
    num_new: int
    num_left: int
    num_results: int
    num_broken: int
    seconds: float
    signal: int | None

    def __str__(self) -> str:
        rate = f", {self.num_new / self.seconds:.2f} pictures/s" if self.num_new else ""
        return (
            f"{self.num_pictures} pictures: {self.num_results} results, {self.num_broken} broken, {self.num_left} left"
            f"; {self.num_new} in this run, {timedelta(seconds=round(self.seconds))}{rate}"
        )


@dataclass(frozen=True)
class DatasetRun:
    """What to run, and how.

    Attributes:
        load: makes a segmenter on `device` (`mask2former.deploy.load` with its source); can be pickled.
        task: one of the segmenter's tasks; None takes its first.
        masks: one of MASKS.
        form: one of `SHARD_FORMATS`.
        engine: one of ENGINES.
        num_workers: fewest and most processes or actors, which differ only for Ray; None takes one for each GPU there
            is, or each core up to 8.
        num_threads: of torch in each worker; None divides the cores of this machine among the local workers, and gives
            one to each actor.
        batch_size: pictures that a worker takes at once.
        shard_size: pictures of a shard, which is what a kill costs at most.
        retry_errors: try those again that an earlier run has found broken.
        options: what results depend on beside the above, such as overrides of the config; can be JSON.
    """

    load: Callable[..., Segmenter]
    task: Task | None = None
    masks: MaskFormat = "rle"
    form: str = "parquet"
    engine: str = "local"
    num_workers: tuple[int, int] | None = None
    num_threads: int | None = None
    batch_size: int = 4
    shard_size: int = 500
    retry_errors: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"--engine {self.engine!r} is unknown; choose from {', '.join(ENGINES)}")
        if self.masks not in MASKS:
            raise ValueError(f"--masks {self.masks!r} is unknown; choose from {', '.join(MASKS)}")
        fewest, most = self.num_workers or (1, 1)
        if not 1 <= fewest <= most:
            raise ValueError(f"--workers {fewest}..{most} must be one number or two that rise, from 1 on")
        if self.engine == "local" and fewest != most:
            raise ValueError(f"--workers {fewest}..{most}: only --engine ray changes the number of workers; give one")

    def prepare(self, inputs: Inputs, output: str | Path) -> Callable[[], Summary]:
        """Open the folder of results and check that it, the model and the task fit.

        Returns:
            What segments all pictures that the folder has no result of. Whatever ends it, what was done is written.

        Raises:
            OSError, ValueError: see `ResultsFolder`, or the model has no such task.
        """
        form = shard_format(self.form, self.masks)
        model = self.load(device="cpu")  # so that errors are found before anything is started
        task = self.task or model.tasks[0]
        if task not in model.tasks:
            raise ValueError(f"--task {task!r} is not one of this model's: {', '.join(model.tasks)}")
        settings = {
            "model": {name: value for name, value in model.description.items() if name not in _DOES_NOT_MATTER},
            "options": self.options,
            "task": task,
            "masks": self.masks,
            "format": self.form,
            "input": str(inputs.base),
        }
        del model
        folder = ResultsFolder(output, settings, form, shard_size=self.shard_size, retry_errors=self.retry_errors)
        return functools.partial(self._run, inputs, folder, task)

    def _run(self, inputs: Inputs, folder: ResultsFolder, task: Task) -> Summary:
        with folder, StopSignals() as stop, logging_redirect_tqdm():
            return self._segment(inputs, folder, task, stop)

    def _segment(self, inputs: Inputs, folder: ResultsFolder, task: Task, stop: StopSignals) -> Summary:
        num_pictures, start = len(inputs.names), time.monotonic()
        num_before = sum(name in folder.done for name in inputs.names)
        num_done = num_before
        logger.info("%d pictures, %d of them done before", num_pictures, num_before)
        with tqdm(total=num_pictures, initial=num_before, unit="picture", disable=None) as progress:
            for records in self._records(inputs, folder, task, stop) if num_before < num_pictures else ():
                num_done += len(records)
                progress.update(len(records))
                for shard in folder.add(records):
                    rate = (num_done - num_before) / (time.monotonic() - start)
                    logger.info(
                        "%s: %d of %d pictures, %d broken, %.2f pictures/s, %s left",
                        *(shard.name, num_done, num_pictures, folder.num_broken, rate),
                        timedelta(seconds=round((num_pictures - num_done) / rate)),
                    )
        return Summary(
            num_pictures=num_pictures,
            num_new=num_done - num_before,
            num_left=num_pictures - num_done,
            num_results=folder.num_results,
            num_broken=folder.num_broken,
            seconds=time.monotonic() - start,
            signal=stop.received,
        )

    def _records(self, inputs: Inputs, folder: ResultsFolder, task: Task, stop: StopSignals) -> Iterator[list[Record]]:
        make = functools.partial(_make_segmenter, self.load, task, self.masks)
        if self.engine == "ray":
            return segment_on_cluster(
                inputs,
                folder.done,
                functools.partial(make, self.num_threads or 1),
                num_workers=self.num_workers,
                num_threads=self.num_threads or 1,
                batch_size=self.batch_size,
                is_stopped=lambda: stop.received is not None,
            )
        num_devices, num_cores = torch.cuda.device_count(), processes.num_cores()
        num_workers = self.num_workers[1] if self.num_workers else num_devices or min(num_cores, _MOST_WORKERS)
        num_threads = self.num_threads or max(1, num_cores // num_workers)
        return segment_locally(
            inputs.rows(folder.done),
            functools.partial(_make_for_worker, functools.partial(make, num_threads), num_devices),
            num_workers=num_workers,
            batch_size=self.batch_size,
            is_stopped=lambda: stop.received is not None,
        )


def _make_segmenter(
    load: Callable[..., Segmenter], task: Task, masks: MaskFormat, num_threads: int, device: str | None = None
) -> BatchSegmenter:
    return BatchSegmenter(functools.partial(load, device=device), task=task, masks=masks, num_threads=num_threads)


def _make_for_worker(make: Callable[..., BatchSegmenter], num_devices: int, number: int) -> BatchSegmenter:
    """The segmenter of one of the processes that share the GPUs of this machine, if there are any."""
    return make(device=f"cuda:{number % num_devices}" if num_devices else None)
