"""How often a record comes in an epoch, where not all come once: by the rarity of its classes, by its data set."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler
from numpy.typing import NDArray

from mask2former.data.datasets.loaders import Record
from mask2former.data.record_lists import objects_of

__all__ = ["repeat_factors"]


def repeat_factors(cfg: CfgNode, datasets: list[list[Record]]) -> NDArray[np.float64] | None:
    """How often each record occurs in an epoch on average, as DATALOADER says: (number of records,); None: once."""
    factors = [found for found in (_class_factors(cfg, datasets), _share_factors(cfg, datasets)) if found is not None]
    return np.prod(factors, axis=0) if factors else None


def _class_factors(cfg: CfgNode, datasets: list[list[Record]]) -> NDArray[np.float64] | None:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return None
    if name == "RepeatFactorTrainingSampler":
        objects = [{"annotations": objects_of(record)} for records in datasets for record in records]
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            objects, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return np.asarray(factors, dtype=np.float64)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN={name!r} is unknown; choose from ['TrainingSampler', 'RepeatFactorTrainingSampler']"
    )


def _share_factors(cfg: CfgNode, datasets: list[list[Record]]) -> NDArray[np.float64] | None:
    """An epoch has as many samples as there are records, divided as DATALOADER.DATASET_SHARES says."""
    shares = cfg.DATALOADER.DATASET_SHARES
    if not shares:
        return None
    if len(shares) != len(datasets) or min(shares) <= 0:
        raise ValueError(
            f"DATALOADER.DATASET_SHARES={list(shares)} must have one positive number for each of the {len(datasets)} "
            "data sets of DATASETS.TRAIN"
        )
    sizes = np.array([len(records) for records in datasets])
    if not sizes.all():
        empty = cfg.DATASETS.TRAIN[int(sizes.argmin())]
        raise ValueError(f"DATALOADER.DATASET_SHARES has a share for {empty}, of which no picture has an annotation")
    factors = sizes.sum() * np.asarray(shares) / sum(shares) / sizes
    return np.repeat(factors, sizes)
