"""From class and mask logits of one image to its results for the three tasks (MaskFormer, arXiv:2107.06278, Sec. 3.4).

Each rule exists once, and works on blocks of rows; the pure functions `semantic_inference`, `panoptic_inference` and
`instance_inference` apply it to whole masks. Everything is decided on the device; what must be a Python list reaches
the host in one copy.
"""

from .image_results import ResultSettings, image_results
from .instances import INSTANCE_OUTPUTS, InstanceCandidates, instance_candidates, instance_inference, tight_boxes
from .panoptic import PanopticCandidates, panoptic_candidates, panoptic_inference
from .resizing import MaskSizes, resized_to_output
from .run_lengths import RunLengthMasks
from .semantic import SEMANTIC_RESULTS, semantic_inference
from .video import video_inference

__all__ = [
    "INSTANCE_OUTPUTS",
    "SEMANTIC_RESULTS",
    "InstanceCandidates",
    "MaskSizes",
    "PanopticCandidates",
    "ResultSettings",
    "RunLengthMasks",
    "image_results",
    "instance_candidates",
    "instance_inference",
    "panoptic_candidates",
    "panoptic_inference",
    "resized_to_output",
    "semantic_inference",
    "tight_boxes",
    "video_inference",
]
