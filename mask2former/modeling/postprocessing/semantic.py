"""The semantic merge (MaskFormer, arXiv:2107.06278, Sec. 3.4): masks of all queries, weighted by class probability."""
# Q queries, K classes, (H, W) pixels of the result, r rows of a block.

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..inference_layers import inference_linear
from .shapes import check_shapes

__all__ = ["SEMANTIC_RESULTS", "SemanticResult", "semantic_inference"]

_TINY = torch.finfo(torch.float32).tiny  # added to scores: where all are 0, all classes are equally probable


def semantic_inference(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Evidence for each class at each pixel: masks of all queries, weighted by class probability.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        mask_logits: (Q, H, W).

    Returns:
        (K, H, W) float, >= 0 but no probabilities: their sum over classes may exceed 1.
    """
    check_shapes(class_logits, mask_logits)
    return _merged(_class_weights(class_logits), mask_logits.sigmoid())


def _class_weights(class_logits: Tensor) -> Tensor:
    """What a query's mask counts for each class, (K, Q): the probability without "no object"."""
    return class_logits.softmax(dim=-1)[:, :-1].T.contiguous()


def _merged(weights_KQ: Tensor, masks_QrW: Tensor) -> Tensor:
    return inference_linear(weights_KQ, masks_QrW.flatten(1).T, None).unflatten(1, masks_QrW.shape[1:])


class SemanticResult(ABC):
    """The merge on blocks of rows, and what is kept of it; the names of the results are those of `value`."""

    #: Maps of K classes, float32, that a block takes.
    num_maps: int

    def __init__(self, class_logits: Tensor, size: tuple[int, int]) -> None:
        """Args:
        class_logits: (Q, K + 1).
        size: (H, W).
        """
        self._weights_KQ = _class_weights(class_logits)
        self.num_classes = len(self._weights_KQ)
        self.bytes_per_pixel = 4 * self.num_classes * self.num_maps
        self._allocate(size)

    def scores(self, logits_QrW: Tensor) -> Tensor:
        """(K, r, W) scores of some rows of all masks' logits, which are overwritten."""
        return _merged(self._weights_KQ, logits_QrW.sigmoid_())

    def add(self, rows: slice, logits_QrW: Tensor) -> None:
        """Mask logits of all queries in some rows; they are overwritten."""
        self.put(rows, self.scores(logits_QrW))

    @abstractmethod
    def _allocate(self, size: tuple[int, int]) -> None: ...

    @abstractmethod
    def put(self, rows: slice, scores_KrW: Tensor) -> None:
        """Keep scores of some rows; they may be overwritten."""

    @abstractmethod
    def value(self) -> dict[str, Tensor]:
        """The part of the model's results that is semantic."""


class _Scores(SemanticResult):
    """`sem_seg` (K, H, W): see `semantic_inference`."""

    num_maps = 1

    def _allocate(self, size: tuple[int, int]) -> None:
        self._scores_KHW = torch.empty((self.num_classes, *size), dtype=torch.float32, device=self._weights_KQ.device)

    def put(self, rows: slice, scores_KrW: Tensor) -> None:
        self._scores_KHW[:, rows] = scores_KrW

    def value(self) -> dict[str, Tensor]:
        return {"sem_seg": self._scores_KHW}


class _Probabilities(SemanticResult):
    """`sem_seg` (K, H, W): the classes' shares of the scores of a pixel, in (0, 1] with sum 1.

    `sem_seg_entropy` (H, W): of these shares, in nats, from 0 (certain) to log K.
    """

    num_maps = 2

    def _allocate(self, size: tuple[int, int]) -> None:
        self._probabilities_KHW = torch.empty(
            (self.num_classes, *size), dtype=torch.float32, device=self._weights_KQ.device
        )
        self._entropy_HW = self._weights_KQ.new_empty(size)

    def put(self, rows: slice, scores_KrW: Tensor) -> None:
        shares_KrW = scores_KrW.add_(_TINY)
        shares_KrW /= shares_KrW.sum(dim=0)
        self._probabilities_KHW[:, rows] = shares_KrW
        logarithms_KrW = shares_KrW.clamp_min(_TINY).log_()
        self._entropy_HW[rows] = logarithms_KrW.mul_(shares_KrW).sum(dim=0).neg_().clamp_min_(0)

    def value(self) -> dict[str, Tensor]:
        return {"sem_seg": self._probabilities_KHW, "sem_seg_entropy": self._entropy_HW}


class _Labels(SemanticResult):
    """`sem_seg` (H, W) int32: the class of the highest score, of equal ones the first.

    `sem_seg_confidence` (H, W): the share of that class in the scores of the pixel, in (0, 1].
    """

    num_maps = 1

    def _allocate(self, size: tuple[int, int]) -> None:
        self._labels_HW = torch.empty(size, dtype=torch.int32, device=self._weights_KQ.device)
        self._confidence_HW = self._weights_KQ.new_empty(size)

    def put(self, rows: slice, scores_KrW: Tensor) -> None:
        best_rW, self._labels_HW[rows] = scores_KrW.max(dim=0)
        total_rW = scores_KrW.sum(dim=0) + self.num_classes * _TINY
        self._confidence_HW[rows] = (best_rW + _TINY) / total_rW

    def value(self) -> dict[str, Tensor]:
        return {"sem_seg": self._labels_HW, "sem_seg_confidence": self._confidence_HW}


#: By MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT.
SEMANTIC_RESULTS: dict[str, type[SemanticResult]] = {
    "scores": _Scores,
    "labels": _Labels,
    "probabilities": _Probabilities,
}
