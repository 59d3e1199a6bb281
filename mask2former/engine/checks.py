"""Mistakes in a config that would otherwise show after minutes of loading, or never."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from mask2former.registry import DATASET_MAPPER_REGISTRY, check_model_names, lookup

__all__ = ["check_class_count", "check_config", "check_output_folder"]


def check_config(cfg: CfgNode) -> None:
    """Names and choices that can be judged before anything is built.

    Raises:
        ValueError: with the config key, its value and the choices.
    """
    check_model_names(cfg)
    _check_head(cfg)
    lookup(DATASET_MAPPER_REGISTRY, cfg.INPUT.DATASET_MAPPER_NAME, "INPUT.DATASET_MAPPER_NAME")
    _choice(cfg.SOLVER.OPTIMIZER, ("ADAMW", "SGD"), "SOLVER.OPTIMIZER")
    _choice(cfg.SOLVER.AMP.PRECISION, ("fp16", "bf16"), "SOLVER.AMP.PRECISION")
    if cfg.SOLVER.ACCUMULATION_STEPS < 1:
        raise ValueError(f"SOLVER.ACCUMULATION_STEPS={cfg.SOLVER.ACCUMULATION_STEPS} must be at least 1")
    for key, names in (("DATASETS.TRAIN", cfg.DATASETS.TRAIN), ("DATASETS.TEST", cfg.DATASETS.TEST)):
        for name in names:
            if name not in DatasetCatalog.list():
                known = sorted(DatasetCatalog.list())
                close = [other for other in known if other.split("_")[0] == name.split("_")[0]]
                hint = f"similar names: {', '.join(close)}" if close else f"choose from: {', '.join(known)}"
                raise ValueError(f"{key} names {name!r}, which is not registered; {hint}")


def _check_head(cfg: CfgNode) -> None:
    """The heads of this project serve one kind of model each; others are their authors' business."""
    architecture, head = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME
    pairs = {"MaskFormerHead": "MaskFormer", "PerPixelBaselineHead": "SemanticSegmentor"}
    pairs["PerPixelBaselinePlusHead"] = pairs["PerPixelBaselineHead"]
    if head in pairs and architecture in pairs.values() and architecture != pairs[head]:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NAME={head!r} cannot serve MODEL.META_ARCHITECTURE={architecture!r}: set "
            f"MODEL.META_ARCHITECTURE to {pairs[head]}"
        )


def check_class_count(cfg: CfgNode, dataset_name: str, key: str) -> None:
    """Dataset and class head must agree, as far as the dataset's metadata says how many classes it has.

    Raises:
        ValueError: MODEL.SEM_SEG_HEAD.NUM_CLASSES is another number than that of the dataset.
    """
    num_classes = _num_classes(MetadataCatalog.get(dataset_name))
    configured = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if num_classes is not None and num_classes != configured:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES={configured}, but dataset {dataset_name!r} ({key}) has {num_classes} "
            f"classes: set NUM_CLASSES to {num_classes} or choose another dataset"
        )


def check_output_folder(output_folder: str) -> None:
    """Refuse to start a new run where another one left its checkpoints.

    Raises:
        FileExistsError: the folder has a last checkpoint.
        NotADirectoryError: it is a file.
    """
    if os.path.isfile(output_folder):
        raise NotADirectoryError(f"OUTPUT_DIR={output_folder!r} is a file: choose another OUTPUT_DIR")
    if os.path.isfile(os.path.join(output_folder, "last_checkpoint")):
        raise FileExistsError(
            f"OUTPUT_DIR={output_folder!r} holds the checkpoints of a run: add --resume to continue that run, or "
            "choose another OUTPUT_DIR (or delete this folder) to start a new one"
        )


def _num_classes(metadata: Metadata) -> int | None:
    """How many contiguous class ids a dataset has; None where its metadata does not say."""
    kind = metadata.get("evaluator_type", "")
    if kind.endswith("panoptic_seg"):
        maps = [metadata.get(f"{part}_dataset_id_to_contiguous_id", {}) for part in ("thing", "stuff")]
        ids = {contiguous for id_map in maps for contiguous in id_map.values()}
    elif kind.endswith("sem_seg"):
        ids = set(range(len(metadata.get("stuff_classes", ()))))
    else:
        ids = set(range(len(metadata.get("thing_classes", ()))))
    # Mapillary lists its unlabeled class, the last one, which is never learned. One further ahead cannot be left out:
    # the ids behind it do not move up.
    has_unlabeled = bool(ids) and metadata.get("ignore_label", -1) == max(ids)
    return len(ids) - has_unlabeled or None


def _choice(value: str, choices: tuple[str, ...], key: str) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r} is unknown; choose from: {', '.join(choices)}")
