"""Mask2Former: one masked-attention model for panoptic, instance and semantic segmentation (arXiv:2112.01527)."""

# First of all imports: an old Detectron2 does not import without it.
from mask2former import compat  # noqa: F401  # isort: skip

from mask2former import data, modeling  # noqa: F401  (fill the registries)
from mask2former.config import add_maskformer2_config
from mask2former.data.dataset_mappers import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from mask2former.evaluation import InstanceSegEvaluator
from mask2former.maskformer_model import MaskFormer
from mask2former.test_time_augmentation import SemanticSegmentorWithTTA

__version__ = "0.1.0"

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "InstanceSegEvaluator",
    "MaskFormer",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "SemanticSegmentorWithTTA",
    "add_maskformer2_config",
]
