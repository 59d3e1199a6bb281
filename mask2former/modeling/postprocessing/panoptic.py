"""The panoptic rule (MaskFormer, arXiv:2107.06278, Sec. 3.4): every pixel to at most one segment."""
# Q queries, K classes, (H, W) pixels of the result, r rows of a block, S candidates (queries that may own pixels).

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .shapes import check_shapes

__all__ = ["PanopticResult", "panoptic_candidates", "panoptic_inference"]

PIXELS_AT_ONCE = 2**20  # when owners become segment ids: what that takes beside the map stays small


def panoptic_candidates(class_logits: Tensor, *, object_mask_threshold: float) -> Tensor:
    """Queries that may own a segment: an object with a score above the threshold; (S,) int64, ascending."""
    scores_Q, labels_Q = class_logits.softmax(dim=-1).max(dim=-1)
    is_object_Q = labels_Q != class_logits.shape[-1] - 1
    return (is_object_Q & (scores_Q > object_mask_threshold)).nonzero().squeeze(1)


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    thing_ids: Iterable[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    with_scores: bool = False,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Every pixel to at most one segment; queries of the same stuff class share one.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        mask_logits: (Q, H, W).
        thing_ids: contiguous ids of the classes that are things.
        object_mask_threshold: a query takes part when its class probability is above this.
        overlap_threshold: a segment needs this share of its mask's area, after other queries took theirs.
        with_scores: add `score` to each dict, the class probability of the query that opened the segment; Detectron2's
            and our drawing functions write it beside the name.

    Returns:
        (H, W) int32 map of segment ids, 0 = no segment, and for each id a dict with `id`, `isthing` and the contiguous
        `category_id`.
    """
    check_shapes(class_logits, mask_logits)
    candidates_S = panoptic_candidates(class_logits, object_mask_threshold=object_mask_threshold)
    height, width = mask_logits.shape[1:]
    result = PanopticResult(
        class_logits[candidates_S], (height, width), thing_ids=thing_ids, overlap_threshold=overlap_threshold
    )
    result.add(slice(0, height), mask_logits[candidates_S])
    return result.value(with_scores=with_scores)


class PanopticResult:
    """The rule on candidates, from blocks of rows.

    What a segment needs to be accepted is known after the last block: until then the map holds owners.
    """

    def __init__(
        self, class_logits_SK: Tensor, size: tuple[int, int], *, thing_ids: Iterable[int], overlap_threshold: float
    ) -> None:
        """Args:
        class_logits_SK: of the candidates, (S, K + 1).
        size: (H, W).
        thing_ids, overlap_threshold: see `panoptic_inference`.
        """
        self._scores_S, self._labels_S = class_logits_SK.softmax(dim=-1).max(dim=-1)
        self._thing_ids = sorted(thing_ids)
        self._overlap_threshold = overlap_threshold
        self._map_HW = torch.zeros(
            size, dtype=torch.int32, device=class_logits_SK.device
        )  # 1 + the candidate that paints a pixel
        # Pixels won, of these painted, and of the mask; by the first row of a block.
        self._areas_3S: dict[int, Tensor] = {}
        self.bytes_per_pixel = len(class_logits_SK) + 40  # which pixels are inside; owners and what is counted

    def add(self, rows: slice, logits_SrW: Tensor) -> None:
        """Mask logits of the candidates in some rows; they are overwritten."""
        if not len(logits_SrW):  # nothing has no maximum
            return
        masks_SrW = logits_SrW.sigmoid_()
        inside_SrW = masks_SrW >= 0.5
        owner_rW = masks_SrW.mul_(self._scores_S[:, None, None]).max(dim=0).indices
        painted_rW = inside_SrW.gather(0, owner_rW.unsqueeze(0)).squeeze(0)
        # Areas are counted in integers: exact, and independent of the blocks and of the order of addition.
        owner_P, painted_P = owner_rW.flatten(), painted_rW.flatten().long()
        areas_3S = torch.zeros(3, len(logits_SrW), dtype=torch.int64, device=logits_SrW.device)
        areas_3S[0].scatter_add_(0, owner_P, torch.ones_like(owner_P))
        areas_3S[1].scatter_add_(0, owner_P, painted_P)
        areas_3S[2] = inside_SrW.view(torch.uint8).flatten(1).sum(dim=1, dtype=torch.int32)
        self._areas_3S[rows.start] = areas_3S
        self._map_HW[rows] = (owner_rW + 1) * painted_rW

    def value(self, *, with_scores: bool) -> tuple[Tensor, list[dict[str, Any]]]:
        """See `panoptic_inference`; to be called once, after all rows."""
        # The published rule compares all pixels won with the mask's area, also those won outside the mask. A painted
        # pixel implies that both areas are positive.
        no_area = torch.zeros(3, len(self._labels_S), dtype=torch.int64, device=self._labels_S.device)
        areas_S, painted_areas_S, mask_areas_S = sum(self._areas_3S.values(), no_area)
        share_S = areas_S.double() / mask_areas_S.double()
        accepted_S = (painted_areas_S > 0) & (share_S >= self._overlap_threshold)
        is_thing_S = torch.isin(self._labels_S, torch.tensor(self._thing_ids, dtype=torch.int64, device=share_S.device))
        opens_S, id_S = _number_segments(accepted_S, self._labels_S, is_thing_S)
        self.opening_candidates = opens_S.nonzero().squeeze(1)  # of each segment the candidate that opened it

        id_of_owner = torch.cat([id_S.new_zeros(1), id_S]).int()
        for part_P in self._map_HW.flatten().split(PIXELS_AT_ONCE):  # views: the map is written in place
            part_P.copy_(id_of_owner.index_select(0, part_P))
        # One copy to the host; float64 holds the integers exactly.
        columns_S = [column.double() for column in (opens_S, id_S, is_thing_S, self._labels_S, self._scores_S)]
        segments_info: list[dict[str, Any]] = []
        for opens, segment_id, is_thing, label, score in torch.stack(columns_S, dim=1).tolist():
            if opens:
                info = {"id": int(segment_id), "isthing": bool(is_thing), "category_id": int(label)}
                segments_info.append({**info, "score": score} if with_scores else info)
        return self._map_HW, segments_info


def _number_segments(accepted_S: Tensor, labels_S: Tensor, is_thing_S: Tensor) -> tuple[Tensor, Tensor]:
    """Which candidates open a segment, and the id that each paints with (0 = none), counted from 1 in query order.

    Every accepted thing opens a segment; of a stuff class only its first accepted candidate does.
    """
    if not len(accepted_S):
        return accepted_S, labels_S
    index_S = torch.arange(len(labels_S), device=labels_S.device)
    accepted_stuff_S = accepted_S & ~is_thing_S
    merges_SS = (labels_S[:, None] == labels_S) & accepted_stuff_S[:, None] & accepted_stuff_S
    first_S = torch.where(accepted_stuff_S, merges_SS.int().argmax(dim=1), index_S)
    opens_S = accepted_S & (first_S == index_S)
    id_S = torch.where(accepted_S, opens_S.cumsum(dim=0)[first_S], 0)
    return opens_S, id_S
