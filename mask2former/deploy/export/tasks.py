"""The rules of `modeling.postprocessing` as graphs of standard operators, for batches (arXiv:2107.06278, Sec. 3.4).

What the rules choose by value is chosen inside the graph: its tensors have the sizes that a picture needs. Queries of
several pictures are chosen together; what only others of the batch need takes no part in a picture's result.
"""

# B pictures, Q queries, S of them chosen, K classes, (h, w) cells at stride 4 of the padded
# picture, (H, W) pixels of the result, N instances.

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mask2former.deploy.export.resizing import MapSizes, resized
from mask2former.modeling.postprocessing import ResultSettings

__all__ = ["OUTPUTS", "InstanceRule", "PanopticRule", "RawOutput", "SemanticRule", "rule_of_task"]

#: Names of what the rule of a task gives, in order.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "panoptic": ("panoptic_map", "segment_ids", "segment_classes", "segment_scores"),
    "instance": ("masks", "boxes", "scores", "classes"),
    "semantic": ("labels", "confidence"),
    "raw": (),
}

_TINY = torch.finfo(torch.float32).tiny


def rule_of_task(task: str, settings: ResultSettings, num_classes: int) -> nn.Module:
    """What makes the outputs of a task from class logits (B, Q, K + 1), mask logits (B, Q, h, w) and sizes."""
    if task == "raw":
        return RawOutput()
    if task == "panoptic":
        return PanopticRule(
            thing_ids=settings.thing_ids or (),
            num_classes=num_classes,
            object_mask_threshold=settings.object_mask_threshold,
            overlap_threshold=settings.overlap_threshold,
        )
    if task == "instance":
        return InstanceRule(thing_ids=settings.thing_ids, num_classes=num_classes, topk=settings.topk)
    return SemanticRule(resize_first=settings.resize_first)


class RawOutput(nn.Module):
    """What the network says, for post-processing elsewhere."""

    def forward(self, class_logits_BQK: Tensor, mask_logits_BQhw: Tensor, sizes: MapSizes) -> tuple[Tensor, ...]:
        """Nothing more."""
        return ()


class SemanticRule(nn.Module):
    """`semantic_inference`, of which the best class is kept."""

    def __init__(self, *, resize_first: bool) -> None:
        """Args:
        resize_first: masks before the merge, instead of the merged map (SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE).
        """
        super().__init__()
        self.resize_first = resize_first

    def forward(self, class_logits_BQK: Tensor, mask_logits_BQhw: Tensor, sizes: MapSizes) -> tuple[Tensor, ...]:
        """`labels` (B, H, W) int32 and `confidence` (B, H, W), the share of the class in the scores of the pixel."""
        weights_BKQ = class_logits_BQK.softmax(dim=-1)[:, :, :-1].transpose(1, 2)
        if self.resize_first:
            scores_BKHW = self._merged(weights_BKQ, resized(mask_logits_BQhw, sizes))
        else:
            scores = self._merged(weights_BKQ, resized(mask_logits_BQhw, sizes._replace(output=sizes.image)))
            scores_BKHW = resized(scores, MapSizes(sizes.image, sizes.image, sizes.output))
        best_BHW, labels_BHW = scores_BKHW.max(dim=1)
        total_BHW = scores_BKHW.sum(dim=1) + scores_BKHW.shape[1] * _TINY
        return labels_BHW.int(), (best_BHW + _TINY) / total_BHW

    def _merged(self, weights_BKQ: Tensor, logits_BQHW: Tensor) -> Tensor:
        height, width = logits_BQHW.shape[2:]
        return (weights_BKQ @ logits_BQHW.sigmoid().flatten(2)).unflatten(2, (height, width))


class PanopticRule(nn.Module):
    """`panoptic_inference`."""

    is_thing_K: Tensor

    def __init__(
        self, *, thing_ids: Iterable[int], num_classes: int, object_mask_threshold: float, overlap_threshold: float
    ) -> None:
        super().__init__()
        self.register_buffer("is_thing_K", _is_thing(thing_ids, num_classes))
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold

    def forward(self, class_logits_BQK: Tensor, mask_logits_BQhw: Tensor, sizes: MapSizes) -> tuple[Tensor, ...]:
        """`panoptic_map` (B, H, W) int32, the ids of the segments, 0 = none; and a table of S >= 1 candidates.

        Its columns (B, S) are `segment_ids` (0: it has become no segment of its own), `segment_classes` and
        `segment_scores`.
        """
        scores_BQ, labels_BQ = class_logits_BQK.softmax(dim=-1).max(dim=-1)
        num_classes = class_logits_BQK.shape[2] - 1
        is_candidate_BQ = (labels_BQ != num_classes) & (scores_BQ > self.object_mask_threshold)
        queries_S = is_candidate_BQ.any(dim=0).nonzero().squeeze(1)
        # One more that owns nothing: the maximum over no candidate at all would not exist.
        queries_S = torch.cat([queries_S, queries_S.new_zeros(1)])
        is_last_S = torch.arange(queries_S.shape[0], device=queries_S.device) == queries_S.shape[0] - 1
        is_candidate_BS = is_candidate_BQ[:, queries_S] & ~is_last_S
        scores_BS = scores_BQ[:, queries_S]
        labels_BS = torch.where(is_candidate_BS, labels_BQ[:, queries_S], 0)

        masks_BSHW = resized(mask_logits_BQhw[:, queries_S], sizes).sigmoid()
        inside_BSHW = masks_BSHW >= 0.5
        claims_BSHW = torch.where(is_candidate_BS[:, :, None, None], masks_BSHW * scores_BS[:, :, None, None], -1.0)
        owner_B1HW = claims_BSHW.max(dim=1, keepdim=True).indices  # on CPUs PyTorch's argmax takes eight times as long
        candidate_S = torch.arange(queries_S.shape[0], device=queries_S.device)
        wins_BSHW = owner_B1HW == candidate_S[:, None, None]
        paints_BSHW = wins_BSHW & inside_BSHW
        areas_BS, painted_areas_BS, mask_areas_BS = (
            flags.flatten(2).sum(dim=2, dtype=torch.int32) for flags in (wins_BSHW, paints_BSHW, inside_BSHW)
        )
        # The published rule compares all pixels won with the mask's area, also those won outside the mask.
        share_BS = areas_BS.float() / mask_areas_BS.float().clamp_min(1)
        accepted_BS = is_candidate_BS & (painted_areas_BS > 0) & (share_BS >= self.overlap_threshold)
        opens_BS, id_BS = self._number_segments(accepted_BS, labels_BS)
        # At most one candidate paints a pixel.
        panoptic_map_BHW = (paints_BSHW * id_BS[:, :, None, None]).amax(dim=1)
        return panoptic_map_BHW, torch.where(opens_BS, id_BS, 0), labels_BS.int(), scores_BS

    def _number_segments(self, accepted_BS: Tensor, labels_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Which candidates open a segment, and the id (int32) that each paints with, counted from 1 in query order.

        Every accepted thing opens a segment; of a stuff class only its first accepted candidate does.
        """
        index_S = torch.arange(labels_BS.shape[1], device=labels_BS.device)
        accepted_stuff_BS = accepted_BS & ~self.is_thing_K[labels_BS]
        merges_BSS = labels_BS[:, :, None] == labels_BS[:, None]
        merges_BSS = merges_BSS & accepted_stuff_BS[:, :, None] & accepted_stuff_BS[:, None]
        first_BS = torch.where(accepted_stuff_BS, merges_BSS.int().argmax(dim=2), index_S)
        opens_BS = accepted_BS & (first_BS == index_S)
        number_BS = opens_BS.long().cumsum(dim=1).gather(1, first_BS)
        return opens_BS, torch.where(accepted_BS, number_BS, 0).int()


class InstanceRule(nn.Module):
    """`instance_inference`."""

    is_thing_K: Tensor

    def __init__(self, *, thing_ids: Iterable[int] | None, num_classes: int, topk: int) -> None:
        super().__init__()
        thing_ids = range(num_classes) if thing_ids is None else thing_ids
        self.register_buffer("is_thing_K", _is_thing(thing_ids, num_classes))
        self.topk = topk

    def forward(self, class_logits_BQK: Tensor, mask_logits_BQhw: Tensor, sizes: MapSizes) -> tuple[Tensor, ...]:
        """N instances by descending score; what is no result has score -1 and comes last.

        `masks` (B, N, H, W) bool, `boxes` (B, N, 4) tight (x0, y0, x1, y1), `scores` (B, N) and `classes` (B, N) int32.
        """
        num_queries, num_classes = class_logits_BQK.shape[1], class_logits_BQK.shape[2] - 1
        probabilities_BP = class_logits_BQK.softmax(dim=-1)[:, :, :-1].flatten(1)
        scores_BN, index_BN = probabilities_BP.topk(min(self.topk, num_queries * num_classes))
        classes_BN, queries_BN = index_BN % num_classes, index_BN // num_classes
        is_result_BN = self.is_thing_K[classes_BN]

        query_Q = torch.arange(num_queries, device=queries_BN.device)
        is_chosen_Q = (queries_BN.flatten()[:, None] == query_Q).any(dim=0)
        queries_S = is_chosen_Q.nonzero().squeeze(1)
        place_BN = (is_chosen_Q.long().cumsum(dim=0) - 1)[queries_BN]

        logits_BSHW = resized(mask_logits_BQhw[:, queries_S], sizes)
        inside_BSHW = logits_BSHW > 0
        area_BS = inside_BSHW.flatten(2).sum(dim=2, dtype=torch.int32).float()
        sum_BS = (logits_BSHW.sigmoid() * inside_BSHW).flatten(2).sum(dim=2)
        quality_BS = sum_BS / (area_BS + 1e-6)
        scores_BN = torch.where(is_result_BN, scores_BN * quality_BS.gather(1, place_BN), -1.0)
        scores_BN, order_BN = scores_BN.topk(scores_BN.shape[1])
        place_BN = place_BN.gather(1, order_BN)

        rows_BSH, columns_BSW = inside_BSHW.any(dim=3), inside_BSHW.any(dim=2)
        (top_BS, bottom_BS), (left_BS, right_BS) = _extent(rows_BSH), _extent(columns_BSW)
        boxes_BS4 = torch.stack([left_BS, top_BS, right_BS, bottom_BS], dim=2).float()
        # One index for all pictures: an index for every pixel would take eight times the masks' memory.
        num_pictures, num_chosen = inside_BSHW.shape[:2]
        first_B1 = torch.arange(num_pictures, device=place_BN.device)[:, None] * num_chosen
        place_X = (place_BN + first_B1).flatten()
        return (
            inside_BSHW.flatten(0, 1)[place_X].unflatten(0, (num_pictures, place_BN.shape[1])),
            boxes_BS4.flatten(0, 1)[place_X].unflatten(0, (num_pictures, place_BN.shape[1])),
            scores_BN,
            classes_BN.gather(1, order_BN).int(),
        )


def _is_thing(thing_ids: Iterable[int], num_classes: int) -> Tensor:
    is_thing_K = torch.zeros(num_classes, dtype=torch.bool)
    is_thing_K[list(thing_ids)] = True
    return is_thing_K


def _extent(occupied_BSX: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied position and the one after the last, (B, S) each; zeros where nothing is occupied."""
    length = occupied_BSX.shape[2]
    place_X = torch.arange(length, device=occupied_BSX.device)
    end_BS = torch.where(occupied_BSX, place_X + 1, 0).amax(dim=2)
    start_BS = torch.where(occupied_BSX, place_X, length).amin(dim=2)
    return torch.minimum(start_BS, end_BS), end_BS
