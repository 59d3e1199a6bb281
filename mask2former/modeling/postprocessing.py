"""From class and mask logits of one image to its results for the three tasks (MaskFormer, arXiv:2107.06278, Sec. 3.4).

Pure functions on tensors. Everything is decided on the device; what must be a Python list reaches the host in one copy.
"""
# Q queries, K classes, (H, W) pixels of the result, N instances, S candidate segments (queries that may own pixels).

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = [
    "InstanceCandidates",
    "instance_candidates",
    "instance_inference",
    "instances_from_candidates",
    "panoptic_candidates",
    "panoptic_inference",
    "semantic_inference",
    "tight_boxes",
]


def semantic_inference(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Evidence for each class at each pixel: masks of all queries, weighted by class probability.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        mask_logits: (Q, H, W).

    Returns:
        (K, H, W) float, >= 0 but no probabilities: their sum over classes may exceed 1.
    """
    _check_shapes(class_logits, mask_logits)
    probabilities_QK = class_logits.softmax(dim=-1)[:, :-1]
    return (probabilities_QK.T @ mask_logits.sigmoid().flatten(1)).unflatten(1, mask_logits.shape[1:])


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
    _check_shapes(class_logits, mask_logits)
    candidates_S = panoptic_candidates(class_logits, object_mask_threshold=object_mask_threshold)
    num_candidates = len(candidates_S)
    if num_candidates == 0:
        return torch.zeros(mask_logits.shape[1:], dtype=torch.int32, device=mask_logits.device), []
    scores_S, labels_S = class_logits[candidates_S].softmax(dim=-1).max(dim=-1)
    masks_SHW = mask_logits[candidates_S].sigmoid()

    owner_HW = (scores_S[:, None, None] * masks_SHW).argmax(dim=0)
    inside_SHW = masks_SHW >= 0.5
    painted_HW = inside_SHW.gather(0, owner_HW.unsqueeze(0)).squeeze(0)
    # Areas are counted in integers: exact, and independent of the order of addition.
    areas_S = _count(owner_HW, torch.ones_like(painted_HW), num_candidates)
    painted_areas_S = _count(owner_HW, painted_HW, num_candidates)
    mask_areas_S = inside_SHW.flatten(1).sum(dim=1)
    # The published rule compares all pixels won with the mask's area, also those won outside the mask. A painted pixel
    # implies that both areas are positive.
    accepted_S = (painted_areas_S > 0) & (areas_S.double() / mask_areas_S.double() >= overlap_threshold)

    is_thing_S = torch.isin(labels_S, torch.tensor(sorted(thing_ids), dtype=torch.int64, device=labels_S.device))
    opens_S, id_S = _number_segments(accepted_S, labels_S, is_thing_S)
    segment_ids_HW = torch.where(painted_HW, id_S[owner_HW], 0).int()
    # One copy to the host; float64 holds the integers exactly.
    columns_S = [column.double() for column in (opens_S, id_S, is_thing_S, labels_S, scores_S)]
    segments_info: list[dict[str, Any]] = []
    for opens, segment_id, is_thing, label, score in torch.stack(columns_S, dim=1).tolist():
        if opens:
            info = {"id": int(segment_id), "isthing": bool(is_thing), "category_id": int(label)}
            segments_info.append({**info, "score": score} if with_scores else info)
    return segment_ids_HW, segments_info


def _number_segments(accepted_S: Tensor, labels_S: Tensor, is_thing_S: Tensor) -> tuple[Tensor, Tensor]:
    """Which candidates open a segment, and the id that each paints with (0 = none), counted from 1 in query order.

    Every accepted thing opens a segment; of a stuff class only its first accepted candidate does.
    """
    index_S = torch.arange(len(labels_S), device=labels_S.device)
    accepted_stuff_S = accepted_S & ~is_thing_S
    merges_SS = (labels_S[:, None] == labels_S) & accepted_stuff_S[:, None] & accepted_stuff_S
    first_S = torch.where(accepted_stuff_S, merges_SS.int().argmax(dim=1), index_S)
    opens_S = accepted_S & (first_S == index_S)
    id_S = torch.where(accepted_S, opens_S.cumsum(dim=0)[first_S], 0)
    return opens_S, id_S


def _count(owner_HW: Tensor, counted_HW: Tensor, num_owners: int) -> Tensor:
    """How many counted pixels each owner has, (num_owners,) int64."""
    counts = torch.zeros(num_owners, dtype=torch.int64, device=owner_HW.device)
    return counts.scatter_add_(0, owner_HW.flatten(), counted_HW.flatten().long())


class InstanceCandidates(NamedTuple):
    """The most probable (query, class) combinations of an image; a query may occur with several classes."""

    scores: Tensor  # (N,) class probabilities, descending
    classes: Tensor  # (N,) int64
    queries: Tensor  # (N,) int64


def instance_candidates(
    class_logits: Tensor, *, topk: int, thing_ids: Iterable[int] | None = None
) -> InstanceCandidates:
    """The `topk` best of all Q * K combinations (all of them if there are fewer).

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        topk: largest number of instances.
        thing_ids: keep only these classes; None keeps all. As published, they are picked after the best combinations
            were chosen, so that fewer than `topk` may remain.
    """
    probabilities_QK = class_logits.softmax(dim=-1)[:, :-1]
    num_classes = probabilities_QK.shape[1]
    scores_N, index_N = probabilities_QK.flatten().topk(min(topk, probabilities_QK.numel()))
    candidates = InstanceCandidates(scores_N, index_N % num_classes, index_N // num_classes)
    if thing_ids is None:
        return candidates
    things = torch.tensor(sorted(thing_ids), dtype=torch.int64, device=class_logits.device)
    is_thing_N = torch.isin(candidates.classes, things)
    return InstanceCandidates(*(field[is_thing_N] for field in candidates))


def instances_from_candidates(candidates: InstanceCandidates, mask_logits: Tensor, mask_index: Tensor) -> Instances:
    """Instances of chosen (query, class) combinations.

    Args:
        candidates: N combinations.
        mask_logits: (M, H, W), each query's mask once.
        mask_index: (N,) int64, the mask of each combination.

    Returns:
        Sorted by score, which is class probability times the mean mask probability inside the mask: `pred_masks`
        (N, H, W) bool, `pred_boxes` tight (x0, y0, x1, y1), `scores`, `pred_classes`.
    """
    masks_MHW = mask_logits > 0
    area_M = masks_MHW.flatten(1).sum(dim=1)
    quality_M = (mask_logits.sigmoid() * masks_MHW).flatten(1).sum(dim=1) / (area_M + 1e-6)
    scores_N, order_N = (candidates.scores * quality_M[mask_index]).sort(descending=True, stable=True)
    mask_index = mask_index[order_N]

    height, width = mask_logits.shape[1:]
    instances = Instances((height, width))
    instances.pred_masks = masks_MHW[mask_index]
    instances.pred_boxes = Boxes(tight_boxes(masks_MHW)[mask_index])
    instances.scores = scores_N
    instances.pred_classes = candidates.classes[order_N]
    return instances


def instance_inference(
    class_logits: Tensor, mask_logits: Tensor, *, topk: int, thing_ids: Iterable[int] | None = None
) -> Instances:
    """The best instances of an image; overlapping ones are kept.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        mask_logits: (Q, H, W).
        topk, thing_ids: see `instance_candidates`.

    Returns:
        See `instances_from_candidates`.
    """
    _check_shapes(class_logits, mask_logits)
    candidates = instance_candidates(class_logits, topk=topk, thing_ids=thing_ids)
    queries_M, mask_index_N = candidates.queries.unique(return_inverse=True)
    return instances_from_candidates(candidates, mask_logits[queries_M], mask_index_N)


def tight_boxes(masks_NHW: Tensor) -> Tensor:
    """(N, 4) float32 boxes (x0, y0, x1, y1) around bool masks, x1 and y1 exclusive; zeros for an empty mask."""
    left, right = _extent(masks_NHW.any(dim=1))
    top, bottom = _extent(masks_NHW.any(dim=2))
    return torch.stack([left, top, right, bottom], dim=1).float()


def _extent(occupied_NX: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied position and the one after the last, (N,) each; zeros where nothing is occupied."""
    length = occupied_NX.shape[1]
    place_X = torch.arange(length, device=occupied_NX.device)
    end_N = torch.where(occupied_NX, place_X + 1, 0).amax(dim=1)
    start_N = torch.where(occupied_NX, place_X, length).amin(dim=1)
    return torch.minimum(start_N, end_N), end_N


def _check_shapes(class_logits: Tensor, mask_logits: Tensor) -> None:
    if class_logits.dim() != 2 or mask_logits.dim() != 3 or len(class_logits) != len(mask_logits):
        raise ValueError(
            "post-processing takes class logits (Q, K + 1) and mask logits (Q, H, W) of one image, got "
            f"{tuple(class_logits.shape)} and {tuple(mask_logits.shape)}"
        )
