"""Using trained models: arrays, pictures and videos in, results and drawings out. Nothing else imports this package."""

from .results import ClassInfo, Segment, Segmentation, segmentation_of
from .runtime import Segmenter, load

__all__ = ["ClassInfo", "Segment", "Segmentation", "Segmenter", "load", "segmentation_of"]
