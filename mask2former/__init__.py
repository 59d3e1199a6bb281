"""Mask2Former: masked-attention mask transformer for panoptic, instance and semantic segmentation (arXiv:2112.01527)."""

# First of all imports: an old Detectron2 does not import without it.
from mask2former import compat  # noqa: F401  # isort: skip
