"""The rule for video instances (arXiv:2112.10764, Sec. 3): the best (query, class) combinations of a clip."""
# Q queries, K classes, T frames, (H, W) pixels of the result, N instances, M queries that are among them.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..masks import MaskLogits
from .host import different, to_host
from .instances import instance_candidates
from .resizing import MaskSizes, resized_to_output

__all__ = ["NUM_VIDEO_INSTANCES", "video_inference"]

NUM_VIDEO_INSTANCES = 10  # of a video, whatever TEST.DETECTIONS_PER_IMAGE says: so the published models are judged


@torch.no_grad()
def video_inference(
    class_logits: Tensor, masks: MaskLogits, sizes: MaskSizes, *, topk: int = NUM_VIDEO_INSTANCES
) -> dict[str, Any]:
    """Instances of one clip; the same query is the same object in every frame.

    Only the masks of chosen queries are made, and at the size of the result only one frame of them at a time.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        masks: of one clip, embeddings (1, Q, C).
        sizes: how masks are resized.
        topk: largest number of instances.

    Returns:
        `image_size` (H, W); lists of N, by descending class probability: `pred_scores`, `pred_labels` (contiguous) and
        `pred_masks`, bool (T, H, W) on the CPU. Unlike in images the quality of a mask does not count.
    """
    candidates = instance_candidates(class_logits, topk=topk)
    queries_M, mask_index_N = different(candidates.queries, len(class_logits))
    logits_TMhw = masks.select(0, queries_M).transpose(0, 1)
    inside_MTHW = torch.stack([resized_to_output(logits_Mhw, sizes) > 0 for logits_Mhw in logits_TMhw], dim=1)
    masks_MTHW, scores_N, labels_N, index_N = to_host(inside_MTHW, candidates.scores, candidates.classes, mask_index_N)
    return {
        "image_size": sizes.output,
        "pred_scores": scores_N.tolist(),
        "pred_labels": labels_N.tolist(),
        "pred_masks": [torch.from_numpy(masks_MTHW[index]) for index in index_N.tolist()],
    }
