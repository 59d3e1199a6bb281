"""Drawings of what a config trains on: annotations as they are stored, samples as the training loader gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from mask2former.data.drawing import draw_record, draw_sample, spread
from mask2former.data.record_lists import load_records
from mask2former.engine.seeding import base_seed
from mask2former.engine.trainer import Trainer

__all__ = ["SOURCES", "draw_annotations", "draw_samples"]

Drawings = Iterator[tuple[str, NDArray[np.uint8]]]


def draw_samples(cfg: CfgNode, count: int) -> Drawings:
    """The first `count` samples of training with SEED, augmented and padded.

    Yields:
        (name of the picture without its suffix, (h, w, 3) uint8 RGB).
    """
    batches = Trainer.build_train_loader(cfg, seed=base_seed(cfg.SEED))
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    for sample in islice(chain.from_iterable(batches), count):
        yield _name(sample), draw_sample(sample, metadata, cfg.INPUT.FORMAT)


def draw_annotations(cfg: CfgNode, count: int) -> Drawings:
    """`count` records spread over DATASETS.TRAIN, or all if there are fewer; yields the same as `draw_samples`."""
    records = load_records(cfg.DATASETS.TRAIN, config_key="DATASETS.TRAIN")
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    for record in spread(records, count):
        yield _name(record), draw_record(record, metadata)


def _name(record: Mapping[str, Any]) -> str:
    """The name of a picture, or of the folder that holds the frames of a video."""
    return Path(record["file_names"][0]).parent.name if "file_names" in record else Path(record["file_name"]).stem


#: What can be drawn, by the name that a command line gives it.
SOURCES: Mapping[str, Callable[[CfgNode, int], Drawings]] = {
    "dataloader": draw_samples,
    "annotation": draw_annotations,
}
