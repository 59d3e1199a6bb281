"""From a dataset's `evaluator_type` to the evaluators that measure all enabled tasks in one pass."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    SemSegEvaluator,
)

from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator

__all__ = ["build_evaluator"]


class _Part(NamedTuple):
    """One evaluator: how it is made from (dataset name, output folder), and the switch under
    `MODEL.MASK_FORMER.TEST` that asks for it (None: always)."""

    make: Callable[[str, str], DatasetEvaluator]
    switch: str | None = None


def _semantic(name: str, folder: str) -> DatasetEvaluator:
    # All it logs is its results as one line of a hundred numbers, class by class: they are in metrics.json.
    logging.getLogger("detectron2.evaluation.sem_seg_evaluation").setLevel(logging.WARNING)
    return SemSegEvaluator(name, distributed=True, output_dir=folder)


def _panoptic(name: str, folder: str) -> DatasetEvaluator:
    return COCOPanopticEvaluator(name, folder)


def _instance(name: str, folder: str) -> DatasetEvaluator:
    # Detectron2's default is its own compiled evaluation, which an installation without C++ sources lacks.
    return InstanceSegEvaluator(name, output_dir=folder, use_fast_impl=False)


_EVALUATORS: Mapping[str, tuple[_Part, ...]] = {
    "sem_seg": (_Part(_semantic),),
    "coco": (_Part(_instance),),
    "coco_panoptic_seg": (
        _Part(_panoptic, "PANOPTIC_ON"),
        _Part(_instance, "INSTANCE_ON"),
        _Part(_semantic, "SEMANTIC_ON"),
    ),
    "ade20k_panoptic_seg": (
        _Part(_semantic),
        _Part(_panoptic, "PANOPTIC_ON"),
        _Part(_instance, "INSTANCE_ON"),
    ),
    "mapillary_vistas_panoptic_seg": (
        _Part(_panoptic, "PANOPTIC_ON"),
        _Part(_instance, "INSTANCE_ON"),
        _Part(_semantic, "SEMANTIC_ON"),
    ),
    "cityscapes_instance": (_Part(lambda name, folder: CityscapesInstanceEvaluator(name)),),
    "cityscapes_sem_seg": (_Part(lambda name, folder: CityscapesSemSegEvaluator(name)),),
    "cityscapes_panoptic_seg": (
        _Part(_panoptic, "PANOPTIC_ON"),
        _Part(lambda name, folder: CityscapesSemSegEvaluator(name), "SEMANTIC_ON"),
        _Part(lambda name, folder: CityscapesInstanceEvaluator(name), "INSTANCE_ON"),
    ),
    "lvis": (_Part(lambda name, folder: LVISEvaluator(name, output_dir=folder)),),
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluators of a dataset as one.

    Args:
        cfg: the switches SEMANTIC_ON, INSTANCE_ON and PANOPTIC_ON decide where a dataset can measure several tasks.
        dataset_name: a registered dataset.
        output_folder: where evaluators leave their files; default OUTPUT_DIR/inference, with a folder per dataset when
            DATASETS.TEST names several.

    Raises:
        ValueError: the dataset's type is unknown, or no enabled task can be measured on it.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise ValueError(
            f"dataset {dataset_name!r} (DATASETS.TEST) has evaluator_type {kind!r} in its metadata; "
            f"choose from: {', '.join(sorted(_EVALUATORS))}"
        )
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name if len(cfg.DATASETS.TEST) > 1 else "")
    os.makedirs(output_folder, exist_ok=True)
    parts = _EVALUATORS[kind]
    switches = cfg.MODEL.MASK_FORMER.TEST
    evaluators = [part.make(dataset_name, output_folder) for part in parts if not part.switch or switches[part.switch]]
    if not evaluators:
        wanted = ", ".join(str(part.switch) for part in parts)
        raise ValueError(
            f"nothing to evaluate on {dataset_name!r}: switch on one of MODEL.MASK_FORMER.TEST.{{{wanted}}}"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
