"""The five mappers that published configs name (INPUT.DATASET_MAPPER_NAME)."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from mask2former.data.augmentation import (
    build_large_scale_jitter,
    build_short_side_augmentations,
    build_test_augmentations,
)
from mask2former.data.dataset_mappers.base import SegmentationMapper
from mask2former.data.dataset_mappers.targets import (
    FrameLabels,
    InstanceLabels,
    PanopticLabels,
    Record,
    SemanticLabels,
    Targets,
)
from mask2former.data.masks import tight_boxes
from mask2former.registry import register_mapper


def _common_settings(cfg: CfgNode) -> dict[str, Any]:
    return {
        "image_format": cfg.INPUT.FORMAT,
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "drop_empty_masks": cfg.INPUT.DROP_EMPTY_MASKS,
        "reduced_decoding": cfg.INPUT.REDUCED_DECODING,
    }


def _ignore_label(cfg: CfgNode) -> int:
    """What the training data set declares, else MODEL.SEM_SEG_HEAD.IGNORE_VALUE."""
    ignore_label: int = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if cfg.DATASETS.TRAIN:
        ignore_label = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("ignore_label", ignore_label)
    return ignore_label


class _ShortSideMapper(SegmentationMapper):
    """Resize by the short side, crop, color jitter, flip; then pad to INPUT.SIZE_DIVISIBILITY."""

    limits_one_class = True

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        settings = {"is_train": is_train, **_common_settings(cfg)}
        if not is_train:
            return {**settings, "augmentations": build_test_augmentations(cfg)}
        crop, divisibility = cfg.INPUT.CROP, cfg.INPUT.SIZE_DIVISIBILITY
        crop_looks = cls.limits_one_class and crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1.0
        return {
            **settings,
            "augmentations": build_short_side_augmentations(cfg, limits_one_class=cls.limits_one_class),
            "size_divisibility": divisibility,
            "ignore_label": _ignore_label(cfg),
            "crop_ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE if crop_looks else None,
            "has_fixed_size": bool(crop.ENABLED and divisibility > 0),
        }


@register_mapper("mask_former_semantic")
class MaskFormerSemanticDatasetMapper(_ShortSideMapper):
    """Targets from semantic label files: one segment for each class."""

    def read_labels(self, record: Record, size: tuple[int, int]) -> FrameLabels:
        return SemanticLabels.read(record, size, ignore_label=self.ignore_label, num_classes=self.num_classes)


@register_mapper("mask_former_panoptic")
class MaskFormerPanopticDatasetMapper(_ShortSideMapper):
    """Targets from panoptic PNGs: one segment for each thing, and one for each stuff class."""

    def read_labels(self, record: Record, size: tuple[int, int]) -> FrameLabels:
        return PanopticLabels.read(record, size, num_classes=self.num_classes, crop_ignore_label=self.crop_ignore_label)


@register_mapper("mask_former_instance")
class MaskFormerInstanceDatasetMapper(_ShortSideMapper):
    """Targets from COCO annotations; crops do not look at classes."""

    limits_one_class = False

    def read_labels(self, record: Record, size: tuple[int, int]) -> FrameLabels:
        return InstanceLabels.read(record, size, num_classes=self.num_classes)


class _LargeScaleJitterMapper(SegmentationMapper):
    """Flip, then large-scale jittering to a square of INPUT.IMAGE_SIZE."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        augmentations = build_large_scale_jitter(cfg) if is_train else build_test_augmentations(cfg)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "has_fixed_size": True,
            **_common_settings(cfg),
        }

    def make_instances(self, targets: Targets) -> Instances:
        instances = super().make_instances(targets)
        instances.gt_boxes = Boxes(tight_boxes(instances.gt_masks))
        return instances


@register_mapper("coco_instance_lsj")
class COCOInstanceNewBaselineDatasetMapper(_LargeScaleJitterMapper):
    """Targets from COCO annotations; records without them give none. What the crop removed is always left out."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {**super().from_config(cfg, is_train), "drop_empty_masks": True}

    def read_labels(self, record: Record, size: tuple[int, int]) -> FrameLabels | None:
        if "annotations" not in record:
            return None
        return InstanceLabels.read(record, size, num_classes=self.num_classes)


@register_mapper("coco_panoptic_lsj")
class COCOPanopticNewBaselineDatasetMapper(_LargeScaleJitterMapper):
    """Targets from panoptic PNGs. Records without a panoptic PNG give none."""

    def read_labels(self, record: Record, size: tuple[int, int]) -> FrameLabels | None:
        if "pan_seg_file_name" not in record:
            return None
        # The crop does not look at classes, so the semantic labels of the record are left unread.
        without_semantic = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        return PanopticLabels.read(without_semantic, size, num_classes=self.num_classes)
