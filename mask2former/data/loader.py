"""Loaders whose order and augmentation are a pure function of the seed and of the position in training.

Position p is the p-th sample of the whole run, counted over all workers, ranks and accumulation steps. Its index comes
from `SampleOrder` and its random numbers from (seed, p). So results do not depend on the number of worker processes,
and a run that starts at iteration k sees exactly what an uninterrupted run sees from there on.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from mask2former.data.datasets.loaders import Record
from mask2former.data.reading import BrokenSampleError, read_size
from mask2former.data.record_lists import load_datasets
from mask2former.data.repeat_factors import repeat_factors
from mask2former.packed_masks import PackedMasks

Mapper = Callable[[Record], Record]
_MAX_REPLACEMENTS = 20


class Place(NamedTuple):
    """Which record is loaded, and at which position of the run."""

    record: int
    position: int


class SampleOrder:
    """The endless order of training: each epoch a new permutation of all records, known from the seed alone."""

    def __init__(self, num_records: int, seed: int, repeat_factors: NDArray[np.float64] | None = None) -> None:
        """
        Args:
            repeat_factors: (num_records,) how often each record occurs in an epoch on average; None = once.
        """
        self.num_records = num_records
        self.seed = seed
        self.repeat_factors = repeat_factors

    def epoch(self, number: int) -> NDArray[np.int64]:
        """Indices of the records in the order of this epoch."""
        generator = np.random.default_rng((self.seed, number))
        indices = np.arange(self.num_records)
        if self.repeat_factors is not None:
            repeats = np.floor(self.repeat_factors + generator.uniform(size=self.num_records)).astype(np.int64)
            indices = np.repeat(indices, repeats)
        return generator.permutation(indices)

    def from_sample(self, start: int) -> Iterator[int]:
        """Indices from the given sample of the endless order on."""
        number, to_skip = 0, start
        if self.repeat_factors is None:
            number, to_skip = divmod(start, self.num_records)
        while True:
            indices = self.epoch(number)
            yield from indices[to_skip:].tolist()
            to_skip = max(0, to_skip - len(indices))
            number += 1


class StepSampler(Sampler[list[Place]]):
    """Batches of places for one rank: each optimizer step's samples, cut into ranks and accumulation steps."""

    def __init__(
        self,
        order: SampleOrder,
        *,
        step_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation_steps: int = 1,
        start_iteration: int = 0,
        is_wide: Callable[[int], bool] | None = None,
    ) -> None:
        """
        Args:
            step_size: samples of one optimizer step over all ranks and accumulation steps.
            start_iteration: the optimizer step to begin with.
            is_wide: groups samples of the same orientation into a step when given; tells it for a record's index.
        """
        if step_size < 1 or step_size % (world_size * accumulation_steps):
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH={step_size} must be a multiple of the number of processes ({world_size}) times "
                f"SOLVER.ACCUMULATION_STEPS ({accumulation_steps})"
            )
        self.order = order
        self.step_size = step_size
        self.rank = rank
        self.world_size = world_size
        self.accumulation_steps = accumulation_steps
        self.start_iteration = start_iteration
        self.is_wide = is_wide

    def __iter__(self) -> Iterator[list[Place]]:
        steps = self._steps() if self.is_wide is None else self._grouped_steps(self.is_wide)
        for iteration, indices in enumerate(steps, start=self.start_iteration):
            places = [Place(index, iteration * self.step_size + slot) for slot, index in enumerate(indices)]
            batch_size = self.step_size // (self.world_size * self.accumulation_steps)
            first = self.rank * self.accumulation_steps
            for part in range(first, first + self.accumulation_steps):
                yield places[part * batch_size : (part + 1) * batch_size]

    def _steps(self) -> Iterator[list[int]]:
        indices = self.order.from_sample(self.start_iteration * self.step_size)
        while True:
            yield [next(indices) for _ in range(self.step_size)]

    def _grouped_steps(self, is_wide: Callable[[int], bool]) -> Iterator[list[int]]:
        waiting: dict[bool, list[int]] = {False: [], True: []}
        iteration = 0
        for index in self.order.from_sample(0):
            group = waiting[is_wide(index)]
            group.append(index)
            if len(group) == self.step_size:
                if iteration >= self.start_iteration:
                    yield group.copy()
                group.clear()
                iteration += 1


class TrainDataset(Dataset[Record]):
    """Records and a mapper; asked with a `Place`, whose position seeds the mapper's random numbers.

    Samples are what the mapper makes, with `gt_masks` packed.
    """

    def __init__(
        self, records: list[Record], mapper: Mapper, *, seed: int, skip_broken: bool, num_workers: int
    ) -> None:
        # Packed into one array, so that worker processes share its memory.
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.seed = seed
        self.skip_broken = skip_broken
        #: Samples skipped by each worker process; shared, so that the main process can read it.
        self.num_skipped = torch.zeros(max(1, num_workers), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Place) -> Record:
        index = place.record
        others = np.random.default_rng((self.seed, place.position, len(self)))
        for attempt in range(_MAX_REPLACEMENTS):
            try:
                with seeded(self.seed, place.position, attempt):
                    return _with_packed_masks(self.mapper(self.records[index]))
            except BrokenSampleError as error:
                if not self.skip_broken:
                    raise BrokenSampleError(
                        f"{error} (repair the file, or set DATALOADER.SKIP_BROKEN True to train without such samples)"
                    ) from error
                worker = get_worker_info()
                self.num_skipped[0 if worker is None else worker.id] += 1
                logging.getLogger(__name__).warning("skipped a broken sample (DATALOADER.SKIP_BROKEN): %s", error)
                index = int(others.integers(len(self)))
        record = self.records[index]
        last = record["file_name"] if "file_name" in record else f"video {record.get('video_id')!r}"
        raise BrokenSampleError(f"{_MAX_REPLACEMENTS} samples in a row cannot be read, the last is {last}")


class TrainLoader:
    """An endless iterable of batches, each a list of samples."""

    def __init__(self, dataset: TrainDataset, sampler: StepSampler, num_workers: int) -> None:
        self.dataset = dataset
        self.sampler = sampler
        # A generator of its own: else the loader draws from torch's global one and so changes what training draws.
        self._loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[list[Record]]:
        return iter(self._loader)

    @property
    def num_skipped(self) -> int:
        """Broken samples that this process and its workers skipped so far."""
        return int(self.dataset.num_skipped.sum())


def build_train_loader(
    cfg: CfgNode,
    mapper: Mapper,
    *,
    seed: int,
    start_iteration: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> TrainLoader:
    """The training loader of one rank.

    Args:
        mapper: from a record to a sample. A mapper whose attribute `has_fixed_size` is true needs no grouping by shape.
        seed: the same on all ranks.
        start_iteration: optimizer step to begin with, when a run is resumed.
        rank, world_size: of this process; None asks Detectron2.
    """
    datasets = load_datasets(
        cfg.DATASETS.TRAIN, config_key="DATASETS.TRAIN", filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    records = [record for dataset in datasets for record in dataset]
    num_workers = cfg.DATALOADER.NUM_WORKERS
    is_grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING and not getattr(mapper, "has_fixed_size", False)
    sampler = StepSampler(
        SampleOrder(len(records), seed, repeat_factors(cfg, datasets)),
        step_size=cfg.SOLVER.IMS_PER_BATCH,
        rank=comm.get_rank() if rank is None else rank,
        world_size=comm.get_world_size() if world_size is None else world_size,
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        start_iteration=start_iteration,
        is_wide=Orientations(records) if is_grouped else None,
    )
    dataset = TrainDataset(records, mapper, seed=seed, skip_broken=cfg.DATALOADER.SKIP_BROKEN, num_workers=num_workers)
    return TrainLoader(dataset, sampler, num_workers)


class Orientations:
    """Tells whether a picture is wider than high, from its record or else, once, from the head of its file."""

    def __init__(self, records: list[Record]) -> None:
        self._is_wide = np.full(len(records), -1, dtype=np.int8)
        self._file_names: dict[int, str] = {}
        for index, record in enumerate(records):
            if "width" in record and "height" in record:
                self._is_wide[index] = record["width"] > record["height"]
            else:
                self._file_names[index] = record["file_name"]

    def __call__(self, index: int) -> bool:
        if self._is_wide[index] < 0:
            try:
                height, width = read_size(self._file_names[index])
                self._is_wide[index] = width > height
            except BrokenSampleError:  # the mapper will say so, or skip it
                self._is_wide[index] = False
        return bool(self._is_wide[index])


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's CPU random numbers inside the block, and restores them after it."""
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(entropy).generate_state(3).tolist()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    # Not torch.manual_seed: that one also changes the GPU's random numbers, which belong to training.
    torch.default_generator.manual_seed(torch_seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _with_packed_masks(sample: Record) -> Record:
    # 16 pictures of 1024x1024 pixels with 20 targets have 320 MB of masks, and every worker keeps two batches ready in
    # shared memory: more than many containers have.
    masks = sample["instances"].get_fields().get("gt_masks") if "instances" in sample else None
    if isinstance(masks, torch.Tensor) and masks.dtype == torch.bool:
        sample["instances"].gt_masks = PackedMasks.pack(masks)
    return sample


def _as_it_is(batch: list[Any]) -> list[Any]:
    return batch
