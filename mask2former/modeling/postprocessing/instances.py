"""The instance rule (Mask2Former, arXiv:2112.01527, Sec. 4.1): the best (query, class) combinations."""
# Q queries, K classes, (H, W) pixels of the result, r rows of a block, N instances, M queries that are among them.

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor

from .host import different, is_among, knows_values, to_host
from .run_lengths import PackedMasks, RunLengthMasks
from .shapes import check_shapes

__all__ = [
    "INSTANCE_OUTPUTS",
    "InstanceCandidates",
    "InstanceResult",
    "instance_candidates",
    "instance_inference",
    "tight_boxes",
]

#: Of MODEL.MASK_FORMER.TEST.INSTANCE_OUTPUT: `pred_masks` as a (N, H, W) bool tensor or as `RunLengthMasks`.
INSTANCE_OUTPUTS = ("masks", "run_lengths")

BYTES_AT_ONCE = 2**23  # when masks are put in order: what that takes beside them stays small


class InstanceCandidates(NamedTuple):
    """The most probable (query, class) combinations of an image; a query may occur with several classes."""

    scores: Tensor  # (N,) class probabilities, descending; -1 for what is left out of the result
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
    is_thing_N = is_among(candidates.classes, thing_ids)
    if knows_values(class_logits.device):
        return InstanceCandidates(*(field[is_thing_N] for field in candidates))
    return candidates._replace(scores=torch.where(is_thing_N, candidates.scores, -1.0))


def instance_inference(
    class_logits: Tensor, mask_logits: Tensor, *, topk: int, thing_ids: Iterable[int] | None = None
) -> Instances:
    """The best instances of an image; overlapping ones are kept.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        mask_logits: (Q, H, W).
        topk, thing_ids: see `instance_candidates`.

    Returns:
        Sorted by score, which is class probability times the mean mask probability inside the mask: `pred_masks`
        (N, H, W) bool, `pred_boxes` tight (x0, y0, x1, y1), `scores`, `pred_classes`.
    """
    check_shapes(class_logits, mask_logits)
    height, width = mask_logits.shape[1:]
    candidates = instance_candidates(class_logits, topk=topk, thing_ids=thing_ids)
    result = InstanceResult(candidates, len(class_logits), (height, width))
    result.add(slice(0, height), mask_logits[result.queries])
    return result.value(*to_host(*result.for_host()))


class InstanceResult:
    """Instances of chosen (query, class) combinations, from blocks of rows; a query's mask is worked on once."""

    def __init__(
        self, candidates: InstanceCandidates, num_queries: int, size: tuple[int, int], output: str = "masks"
    ) -> None:
        """Args:
        candidates: N combinations.
        num_queries: Q.
        size: (H, W).
        output: one of `INSTANCE_OUTPUTS`.
        """
        self.queries, self._mask_index_N = different(candidates.queries, num_queries)  # M of them
        self._candidates = candidates
        num_masks, num_instances, device = len(self.queries), len(candidates.queries), candidates.queries.device
        self._size = size
        self._masks: _BoolMasks | PackedMasks
        if output == "masks":
            self._masks = _BoolMasks(num_instances, size, device)
        else:
            self._masks = PackedMasks(num_masks, size, device)
        self._occupied_rows_MH = torch.zeros(num_masks, size[0], dtype=torch.uint8, device=device)
        self._occupied_columns_MW = torch.zeros(num_masks, size[1], dtype=torch.uint8, device=device)
        self._columns_lock = threading.Lock()  # blocks come from several threads
        # By the first row of a block, so that the order of addition is always the same:
        self._areas_M: dict[int, Tensor] = {}
        self._sums_M: dict[int, Tensor] = {}  # of the probabilities inside
        self.bytes_per_pixel = 2 * num_masks

    def add(self, rows: slice, logits_MrW: Tensor) -> None:
        """Mask logits of `queries` in some rows; they are overwritten."""
        # A logit that is not above 0 becomes a probability of 0, and 1/2 is the least of the others: what is inside can
        # be told from the probabilities, with fewer passes than from a comparison.
        probabilities_MrW = F.threshold(logits_MrW, 0.0, -math.inf, inplace=True).sigmoid_()
        inside_MrW = probabilities_MrW.bool()
        self._masks.put(rows, inside_MrW)
        bytes_MrW = inside_MrW.view(torch.uint8)
        self._occupied_rows_MH[:, rows] = bytes_MrW.amax(dim=2)
        columns_MW = bytes_MrW.amax(dim=1)
        with self._columns_lock:
            torch.maximum(self._occupied_columns_MW, columns_MW, out=self._occupied_columns_MW)
        self._sums_M[rows.start] = probabilities_MrW.sum(dim=(1, 2))
        self._areas_M[rows.start] = probabilities_MrW.ceil_().sum(dim=(1, 2))

    def for_host(self) -> list[Tensor]:
        """What `value` must know; to be called once, after all rows."""
        quality_M = _in_order(self._sums_M).sum(dim=0) / (_in_order(self._areas_M).sum(dim=0) + 1e-6)
        is_result_N = self._candidates.scores >= 0
        scores_N = torch.where(is_result_N, self._candidates.scores * quality_M[self._mask_index_N], -1.0)
        self._scores_N, self._order_N = scores_N.sort(descending=True, stable=True)  # what is no result comes last
        self._mask_index_N = self._mask_index_N[self._order_N]
        self._boxes_M4 = _boxes(self._occupied_rows_MH, self._occupied_columns_MW)
        for_host = [is_result_N.sum()]
        if isinstance(self._masks, PackedMasks):
            for_host += [self._masks.bits_MHB, self._mask_index_N]
        return for_host

    def value(self, num_results: NDArray[Any], *packed: NDArray[Any]) -> Instances:
        """See `instance_inference`; takes what `for_host` gave, on the host."""
        results = slice(int(num_results))
        mask_index_N = self._mask_index_N[results]
        instances = Instances(self._size)
        if isinstance(self._masks, PackedMasks):
            bits_MHB, index_N = packed
            rles_M = self._masks.encode(bits_MHB)
            instances.pred_masks = RunLengthMasks([rles_M[index] for index in index_N[results].tolist()])
        else:
            instances.pred_masks = self._masks.in_order(self._mask_index_N)[results]
        self.queries_of_instances = self.queries[mask_index_N]
        instances.pred_boxes = Boxes(self._boxes_M4[mask_index_N])
        instances.scores = self._scores_N[results]
        instances.pred_classes = self._candidates.classes[self._order_N[results]]
        return instances


def _in_order(by_row: dict[int, Tensor]) -> Tensor:
    return torch.stack([by_row[start] for start in sorted(by_row)])


class _BoolMasks:
    """N masks, of which the first M hold those of the queries until all are put in order."""

    def __init__(self, num_instances: int, size: tuple[int, int], device: torch.device) -> None:
        self._masks_NHW = torch.empty((num_instances, *size), dtype=torch.bool, device=device)

    def put(self, rows: slice, inside_MrW: Tensor) -> None:
        self._masks_NHW[: len(inside_MrW), rows] = inside_MrW

    def in_order(self, mask_index_N: Tensor) -> Tensor:
        num_instances, _, width = self._masks_NHW.shape
        for rows_NrW in self._masks_NHW.split(max(1, BYTES_AT_ONCE // max(1, num_instances * width)), dim=1):
            rows_NrW.copy_(rows_NrW[mask_index_N])
        return self._masks_NHW


def tight_boxes(masks_NHW: Tensor) -> Tensor:
    """(N, 4) float32 boxes (x0, y0, x1, y1) around bool masks, x1 and y1 exclusive; zeros for an empty mask."""
    return _boxes(masks_NHW.any(dim=2), masks_NHW.any(dim=1))


def _boxes(occupied_rows_NH: Tensor, occupied_columns_NW: Tensor) -> Tensor:
    top, bottom = _extent(occupied_rows_NH > 0)
    left, right = _extent(occupied_columns_NW > 0)
    return torch.stack([left, top, right, bottom], dim=1).float()


def _extent(occupied_NX: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied position and the one after the last, (N,) each; zeros where nothing is occupied."""
    length = occupied_NX.shape[1]
    place_X = torch.arange(length, device=occupied_NX.device)
    end_N = torch.where(occupied_NX, place_X + 1, 0).amax(dim=1)
    start_N = torch.where(occupied_NX, place_X, length).amin(dim=1)
    return torch.minimum(start_N, end_N), end_N
