"""Mask2Former: one masked-attention model for panoptic, instance and semantic segmentation (arXiv:2112.01527)."""

# First of all imports: an old Detectron2 does not import without it.
from mask2former import compat  # noqa: F401  # isort: skip

__version__ = "0.1.0"
