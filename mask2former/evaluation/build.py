"""From a dataset's `evaluator_type` to the evaluators that measure all enabled tasks in one pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, LVISEvaluator

from mask2former.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator
from mask2former.evaluation.panoptic_evaluation import PanopticEvaluator
from mask2former.evaluation.semantic_evaluation import SemanticEvaluator
from mask2former.evaluation.youtube_vis_evaluation import YTVISEvaluator

__all__ = ["build_evaluator"]


class _Part(NamedTuple):
    """One evaluator: how it is made from (cfg, dataset name, output folder), and the switch under
    `MODEL.MASK_FORMER.TEST` that asks for it (None: always)."""

    make: Callable[[CfgNode, str, str], DatasetEvaluator]
    switch: str | None = None


def _semantic(_: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return SemanticEvaluator(name, folder)


def _panoptic(_: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return PanopticEvaluator(name, folder)


def _instance(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    tasks = ("bbox", "segm", "boundary") if cfg.TEST.BOUNDARY_AP else ("bbox", "segm")
    return InstanceSegEvaluator(name, tasks, output_dir=folder)


def _cityscapes_semantic(_: CfgNode, name: str, __: str) -> DatasetEvaluator:
    return CityscapesSemanticEvaluator(name)


def _cityscapes_instance(_: CfgNode, name: str, __: str) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(name)


def _youtube_vis(_: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return YTVISEvaluator(name, folder)


def _lvis(_: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    try:
        return LVISEvaluator(name, output_dir=folder)
    except ModuleNotFoundError as error:
        raise ImportError(f"evaluation of {name!r} needs the package lvis: pip install lvis") from error


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
    "cityscapes_instance": (_Part(_cityscapes_instance),),
    "cityscapes_sem_seg": (_Part(_cityscapes_semantic),),
    "cityscapes_panoptic_seg": (
        _Part(_panoptic, "PANOPTIC_ON"),
        _Part(_cityscapes_semantic, "SEMANTIC_ON"),
        _Part(_cityscapes_instance, "INSTANCE_ON"),
    ),
    "lvis": (_Part(_lvis),),
    "ytvis": (_Part(_youtube_vis),),
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluators of a dataset as one.

    Args:
        cfg: the switches SEMANTIC_ON, INSTANCE_ON and PANOPTIC_ON decide where a dataset can measure several tasks,
            TEST.BOUNDARY_AP adds boundary AP to COCO's AP.
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
    evaluators = [
        part.make(cfg, dataset_name, output_folder) for part in parts if not part.switch or switches[part.switch]
    ]
    if not evaluators:
        wanted = ", ".join(str(part.switch) for part in parts)
        raise ValueError(
            f"nothing to evaluate on {dataset_name!r}: switch on one of MODEL.MASK_FORMER.TEST.{{{wanted}}}"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
