"""From a data set's record to the sample that the model reads."""

from mask2former.data.dataset_mappers.base import ImageMapper, SegmentationMapper
from mask2former.data.dataset_mappers.clip import (
    ClipMapper,
    CocoClipDatasetMapper,
    JointClipDatasetMapper,
    YTVISDatasetMapper,
)
from mask2former.data.dataset_mappers.image import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "ClipMapper",
    "CocoClipDatasetMapper",
    "ImageMapper",
    "JointClipDatasetMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "SegmentationMapper",
    "YTVISDatasetMapper",
]
