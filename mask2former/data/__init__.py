"""Data sets, mappers and loaders. Importing registers names and reads no data."""

from mask2former.data.dataset_mappers import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    ImageMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from mask2former.data.datasets import register_all
from mask2former.data.evaluation_loader import build_test_loader
from mask2former.data.loader import build_train_loader
from mask2former.data.reading import BrokenSampleError

__all__ = [
    "BrokenSampleError",
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "ImageMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "build_test_loader",
    "build_train_loader",
    "register_all",
]

register_all()
