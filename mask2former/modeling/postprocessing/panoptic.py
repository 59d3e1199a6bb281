"""The panoptic rule (MaskFormer, arXiv:2107.06278, Sec. 3.4): every pixel to at most one segment."""
# Q queries, K classes, (H, W) pixels of the result, r rows of a block, S candidates (queries that may own pixels).

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from .host import chosen_first, is_among, to_host
from .shapes import check_shapes

__all__ = ["PanopticCandidates", "PanopticResult", "panoptic_candidates", "panoptic_inference"]

PIXELS_AT_ONCE = 2**20  # when owners become segment ids: what that takes beside the map stays small


class PanopticCandidates(NamedTuple):
    """Queries that may own a segment, in ascending order; on a device that must not be waited for also all others,
    behind them.
    """

    queries: Tensor  # (S,) int64
    scores: Tensor  # (S,) probability of the most probable class
    labels: Tensor  # (S,) int64, that class
    is_candidate: Tensor  # (S,) bool, on the CPU True


def panoptic_candidates(class_logits: Tensor, *, object_mask_threshold: float) -> PanopticCandidates:
    """Candidates are objects with a score above the threshold.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
    """
    scores_Q, labels_Q = class_logits.softmax(dim=-1).max(dim=-1)
    is_object_Q = labels_Q != class_logits.shape[-1] - 1
    is_candidate_Q = is_object_Q & (scores_Q > object_mask_threshold)
    queries_S = chosen_first(is_candidate_Q)
    return PanopticCandidates(queries_S, scores_Q[queries_S], labels_Q[queries_S], is_candidate_Q[queries_S])


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
    candidates = panoptic_candidates(class_logits, object_mask_threshold=object_mask_threshold)
    height, width = mask_logits.shape[1:]
    result = PanopticResult(candidates, (height, width), thing_ids=thing_ids, overlap_threshold=overlap_threshold)
    result.add(slice(0, height), mask_logits[candidates.queries])
    return result.value(*to_host(*result.for_host()), with_scores=with_scores)


class PanopticResult:
    """The rule on candidates, from blocks of rows.

    What a segment needs to be accepted is known after the last block: until then the map holds owners.
    """

    def __init__(
        self,
        candidates: PanopticCandidates,
        size: tuple[int, int],
        *,
        thing_ids: Iterable[int],
        overlap_threshold: float,
    ) -> None:
        """Args:
        size: (H, W).
        thing_ids, overlap_threshold: see `panoptic_inference`.
        """
        self._candidates = candidates
        # What is no candidate loses every pixel; of equal claims the first one wins, and candidates come first.
        self._claims_S11 = torch.where(candidates.is_candidate, candidates.scores, -1.0)[:, None, None]
        self._is_thing_S = is_among(candidates.labels, thing_ids)
        self._overlap_threshold = overlap_threshold
        # 1 + the candidate that paints a pixel
        self._map_HW = torch.zeros(size, dtype=torch.int32, device=candidates.queries.device)
        # Pixels won, of these painted, and of the mask; by the first row of a block.
        self._areas_3S: dict[int, Tensor] = {}
        self.bytes_per_pixel = len(candidates.queries) + 40  # which pixels are inside; owners and what is counted

    def add(self, rows: slice, logits_SrW: Tensor) -> None:
        """Mask logits of the candidates in some rows; they are overwritten."""
        if not len(logits_SrW):  # nothing has no maximum
            return
        masks_SrW = logits_SrW.sigmoid_()
        inside_SrW = masks_SrW >= 0.5
        owner_rW = masks_SrW.mul_(self._claims_S11).max(dim=0).indices
        painted_rW = inside_SrW.gather(0, owner_rW.unsqueeze(0)).squeeze(0)
        # Areas are counted in integers: exact, and independent of the blocks and of the order of addition.
        # Row by row first: a GPU's additions to the same number wait for one another.
        areas_2rS = torch.zeros(2, len(owner_rW), len(logits_SrW), dtype=torch.int32, device=logits_SrW.device)
        areas_2rS[0].scatter_add_(1, owner_rW, torch.ones_like(owner_rW, dtype=torch.int32))
        areas_2rS[1].scatter_add_(1, owner_rW, painted_rW.int())
        mask_areas_S = inside_SrW.view(torch.uint8).flatten(1).sum(dim=1, dtype=torch.int32)
        areas_3S = torch.cat([areas_2rS.sum(dim=1, dtype=torch.int64), mask_areas_S.long().unsqueeze(0)])
        self._areas_3S[rows.start] = areas_3S
        self._map_HW[rows] = (owner_rW + 1) * painted_rW

    def for_host(self) -> list[Tensor]:
        """What `value` must know; to be called once, after all rows."""
        # The published rule compares all pixels won with the mask's area, also those won outside the mask. A painted
        # pixel implies that both areas are positive.
        queries_S, scores_S, labels_S, is_candidate_S = self._candidates
        no_area = torch.zeros(3, len(labels_S), dtype=torch.int64, device=labels_S.device)
        areas_S, painted_areas_S, mask_areas_S = sum(self._areas_3S.values(), no_area)
        share_S = areas_S.double() / mask_areas_S.double()
        accepted_S = is_candidate_S & (painted_areas_S > 0) & (share_S >= self._overlap_threshold)
        opens_S, id_S = _number_segments(accepted_S, labels_S, self._is_thing_S)
        id_of_owner = torch.cat([id_S.new_zeros(1), id_S]).int()
        for part_P in self._map_HW.flatten().split(PIXELS_AT_ONCE):  # views: the map is written in place
            part_P.copy_(id_of_owner.index_select(0, part_P))
        return [opens_S, id_S, self._is_thing_S, labels_S, scores_S, queries_S]

    def value(self, *columns_S: NDArray[Any], with_scores: bool) -> tuple[Tensor, list[dict[str, Any]]]:
        """See `panoptic_inference`; takes what `for_host` gave, on the host."""
        opens_S, id_S, is_thing_S, labels_S, scores_S, queries_S = columns_S
        self.queries_of_segments: list[int] = queries_S[opens_S].tolist()  # that opened them
        segments_info: list[dict[str, Any]] = []
        for segment_id, is_thing, label, score in zip(
            *(column_S[opens_S].tolist() for column_S in (id_S, is_thing_S, labels_S, scores_S)), strict=True
        ):
            info = {"id": segment_id, "isthing": is_thing, "category_id": label}
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
