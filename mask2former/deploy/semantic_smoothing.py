"""Semantic results of a video, smoothed over time without looking for motion."""
# K classes, (H, W) pixels of a frame.

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import ClassInfo, Segmentation, segmentation_of
from mask2former.maskformer_model import MaskFormer
from mask2former.modeling.postprocessing import image_results

__all__ = ["semantic_results", "smoothed_scores"]


def semantic_results(
    frames: Iterable[NDArray[np.uint8]],
    predictor: Predictor,
    classes: Sequence[ClassInfo],
    *,
    smoothing: float = 0.0,
    latency: int = 0,
) -> Iterator[Segmentation]:
    """The classes of every frame's pixels.

    Args:
        frames: (H, W, 3) uint8 RGB; where their size changes the past is resized.
        predictor: of any model with semantic results.
        classes: of its dataset.
        smoothing, latency: see `smoothed_scores`; without smoothing there is no need to wait.
    """
    predictions = (_semantic(frame, predictor) for frame in frames)
    if smoothing:
        scores = (_scores(prediction) for prediction in predictions)
        predictions = ({"sem_seg": mean} for mean in smoothed_scores(scores, smoothing, latency))
    for prediction in predictions:
        yield segmentation_of(prediction, "semantic", classes)


def smoothed_scores(scores: Iterable[Tensor], smoothing: float, latency: int) -> Iterator[Tensor]:
    """Means over time in which a frame at a distance of d has a weight of smoothing^d.

    Args:
        scores: (K, H, W) of every frame.
        smoothing: above 0 and below 1.
        latency: so many frames after the one in question count beside all those before it.

    Yields:
        (K, H, W), in the range of the scores.
    """
    past: Tensor | None = None  # weighted sum up to the oldest of `waiting`, without it
    past_weight = 0.0
    waiting: deque[Tensor] = deque()

    def completed() -> Tensor:
        nonlocal past, past_weight
        now = waiting.popleft()
        past = now.clone() if past is None else now + smoothing * _resized(past, now)
        past_weight = 1 + smoothing * past_weight
        total, weight = past.clone(), past_weight
        for distance, later in enumerate(waiting, start=1):
            total += smoothing**distance * _resized(later, now)
            weight += smoothing**distance
        return total / weight

    for scores_of_frame in scores:
        waiting.append(scores_of_frame)
        if len(waiting) > latency:
            yield completed()
    while waiting:
        yield completed()


@torch.inference_mode()
def _semantic(frame: NDArray[np.uint8], predictor: Predictor) -> dict[str, Any]:
    """`sem_seg` and what belongs to it."""
    model = predictor.model
    if not isinstance(model, MaskFormer):
        return predictor(frame)
    prediction = model.predict([predictor.prepare(frame)])[0]
    settings = replace(model.result_settings, instance_output=None, panoptic_on=False)
    return image_results(prediction.class_logits, prediction.mask_logits, prediction.sizes, settings)


def _scores(prediction: dict[str, Any]) -> Tensor:
    scores: Tensor = prediction["sem_seg"]
    if scores.dim() != 3:
        raise ValueError(
            "smoothing needs the scores of all classes: set MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT to scores or "
            "probabilities instead of labels"
        )
    return scores


def _resized(scores_KHW: Tensor, like_KHW: Tensor) -> Tensor:
    if scores_KHW.shape == like_KHW.shape:
        return scores_KHW
    return F.interpolate(scores_KHW[None], size=like_KHW.shape[1:], mode="bilinear", align_corners=False)[0]
