"""The loader of evaluations: every picture once, in batches that the network treats like single pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset

from mask2former.data.dataset_mappers import ClipMapper, ImageMapper
from mask2former.data.datasets.loaders import Record
from mask2former.data.loader import Mapper
from mask2former.data.reading import read_size
from mask2former.data.record_lists import load_records

__all__ = ["build_test_loader", "equal_batches"]

Size = tuple[int, int]  # height, width


def build_test_loader(cfg: CfgNode, dataset_name: str, mapper: Mapper | None = None) -> DataLoader[list[Record]]:
    """The pictures of a data set, each rank its share; labels are left to the evaluators.

    A sample tells its `position` in the data set. With TEST.IMS_PER_BATCH of 1 they come in this order; with more,
    pictures of the same network input are brought together.
    """
    records = load_records([dataset_name], config_key="DATASETS.TEST")
    if mapper is None:
        mapper = (ClipMapper if "file_names" in records[0] else ImageMapper)(cfg, False)
    share = list(InferenceSampler(len(records)))
    batch_size = cfg.TEST.IMS_PER_BATCH
    if batch_size < 1:
        raise ValueError(f"TEST.IMS_PER_BATCH must be at least 1, got {batch_size}")
    if batch_size == 1:
        batches = [[index] for index in share]
    else:
        input_size = _padded_input_size(cfg, mapper)
        batches = equal_batches(share, batch_size, lambda index: input_size(_stored_size(records[index])))
    loader: DataLoader[Any] = DataLoader(
        _TestDataset(records, mapper),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),
    )
    return loader


class _TestDataset(Dataset[Record]):
    def __init__(self, records: list[Record], mapper: Mapper) -> None:
        self._records = DatasetFromList(records, copy=False)
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return {**self._mapper(self._records[index]), "position": index}


def equal_batches(indices: Sequence[int], batch_size: int, key: Callable[[int], Hashable]) -> list[list[int]]:
    """Batches of indices with the same key, in the order in which they are complete; incomplete ones at the end."""
    waiting: dict[Hashable, list[int]] = {}
    batches = []
    for index in indices:
        batch = waiting.setdefault(key(index), [])
        batch.append(index)
        if len(batch) == batch_size:
            batches.append(waiting.pop(key(index)))
    return [*batches, *waiting.values()]


def _padded_input_size(cfg: CfgNode, mapper: Mapper) -> Callable[[Size], Size]:
    """From the size of a stored picture to that of the network's input with its padding.

    Only pictures that agree in it may share a batch: the network does not know padding from picture, so more padding
    than alone would change its results.
    """
    if not isinstance(mapper, ImageMapper) or isinstance(mapper, ClipMapper):
        raise ValueError(f"TEST.IMS_PER_BATCH above 1 needs an ImageMapper of pictures, got {type(mapper).__name__}")
    # A backbone that has its own value (negative) is not asked: then sizes must agree without padding.
    divisor = max(1, cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY)

    def padded(size: Size) -> Size:
        height, width = mapper.resized_size(size)
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    return padded


def _stored_size(record: Record) -> Size:
    """(height, width) of a picture, from its record or else from the head of its file."""
    if "height" in record and "width" in record:
        return record["height"], record["width"]
    return read_size(record["file_name"])
