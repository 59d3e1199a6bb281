"""Test-time augmentation: results from several sizes of each picture, each also mirrored.

This is the multi-scale setting of the published ADE20K, Cityscapes and Mapillary figures for semantic segmentation
(Mask2Former, arXiv:2112.01527, Sec. 4); for panoptic and instance segmentation it is our extension.
"""

from mask2former.test_time_augmentation.mask_classification import MaskFormerWithTTA, with_test_time_augmentation
from mask2former.test_time_augmentation.semantic import SemanticSegmentorWithTTA

__all__ = ["MaskFormerWithTTA", "SemanticSegmentorWithTTA", "with_test_time_augmentation"]
