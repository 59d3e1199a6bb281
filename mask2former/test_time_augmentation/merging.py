"""One prediction out of several of the same picture, made at other sizes or mirrored.

Queries of different copies are not aligned: the one that finds the cat may find the dog in a larger copy. Therefore
every copy's queries are matched to those of a reference copy, one to one, and what is matched is averaged.

How they are averaged was decided on the digits model of this project (docs/performance.md): means of logits beat means
of probabilities, a mask weighted by its agreement beats a plain mean and a threshold, and queries of other copies that
match nothing are left out because they raised nothing.
"""
# Q queries, K classes, R chosen queries, F = Fh * Fw cells of the common frame, P points, (h, w) cells of a copy.

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..maskformer_model import ImagePrediction, MaskSizes
from ..modeling.matcher import assign

__all__ = ["MergedQueries", "agreement"]


class MergedQueries:
    """Running means over copies: the queries are the reference's, and so is the frame (its padded picture)."""

    def __init__(self, reference: ImagePrediction, *, is_mirrored: bool = False, refinement: float = 1.0) -> None:
        """Args:
        reference: the copy whose queries the others are matched to.
        is_mirrored: whether it shows the picture mirrored; the frame never does.
        refinement: how many times finer the frame is than the reference's masks.
        """
        height, width = reference.masks.features.shape[-2:]
        self.sizes = reference.sizes
        self._frame = (math.ceil(height * refinement), math.ceil(width * refinement))
        mask_logits_QF = self._in_frame(reference, is_mirrored)
        self._probabilities_QK = reference.class_logits.softmax(dim=-1)
        self._masks_QF = self._without_padding(mask_logits_QF).sigmoid()
        self._class_sum_QK = reference.class_logits.clone()
        self._mask_sum_QF = mask_logits_QF
        self._num_matched_Q1 = torch.ones_like(self._class_sum_QK[:, :1])
        self._weight_Q1 = torch.ones_like(self._class_sum_QK[:, :1])

    def add(self, copy: ImagePrediction, *, is_mirrored: bool) -> None:
        """Match a further copy's queries, with one transfer to the host, and add them."""
        mask_logits_QF = self._in_frame(copy, is_mirrored)
        agreement_QQ = agreement(
            self._probabilities_QK,
            self._masks_QF,
            copy.class_logits.softmax(dim=-1),
            self._without_padding(mask_logits_QF).sigmoid(),
        )
        pairs = assign(-agreement_QQ.cpu().numpy())
        mine_R, theirs_R = (torch.from_numpy(queries).to(agreement_QQ.device) for queries in pairs)
        weight_R1 = agreement_QQ[mine_R, theirs_R].unsqueeze(1)
        self._class_sum_QK[mine_R] += copy.class_logits[theirs_R]
        self._num_matched_Q1[mine_R] += 1
        self._mask_sum_QF[mine_R] += weight_R1 * mask_logits_QF[theirs_R]
        self._weight_Q1[mine_R] += weight_R1

    @property
    def class_logits(self) -> Tensor:
        """(Q, K + 1), the mean over copies."""
        return self._class_sum_QK / self._num_matched_Q1

    def mask_logits(self, queries: Tensor) -> Tensor:
        """Mask logits of the queries of these indices (R,) in the frame, (R, Fh, Fw).

        Each is a mean over copies, the reference with weight 1 and another copy with the agreement of the matched pair:
        where a copy did not find the same thing, it has next to no say about the mask.
        """
        mean_RF = self._mask_sum_QF[queries] / self._weight_Q1[queries]
        return mean_RF.unflatten(1, self._frame)

    def _in_frame(self, copy: ImagePrediction, is_mirrored: bool) -> Tensor:
        """A copy's mask logits at the cells of the frame, (Q, F)."""
        if not is_mirrored and copy.masks.features.shape[-2:] == self._frame and copy.sizes == self.sizes:
            return copy.masks.dense()[0, :, 0].flatten(1)
        points_F2 = _points(self._frame, self.sizes, copy.class_logits.device)
        return copy.masks.at_points(_in_copy(points_F2, copy, is_mirrored).unsqueeze(0))[0]

    def _without_padding(self, maps_QF: Tensor) -> Tensor:
        """The cells that show any of the picture."""
        rows, columns = (
            math.ceil(cells * image / padded)
            for cells, image, padded in zip(self._frame, self.sizes.image, self.sizes.padded, strict=True)
        )
        return maps_QF.unflatten(1, self._frame)[:, :rows, :columns].flatten(1)


def agreement(
    probabilities_QK: Tensor, masks_QF: Tensor, other_probabilities_QK: Tensor, other_masks_QF: Tensor
) -> Tensor:
    """How far each query of one prediction and each of another mean the same thing in the same place.

    Args:
        probabilities_QK: (Q, K + 1) of classes, last class = "no object", which agrees with nothing.
        masks_QF: (Q, F) probabilities.
        other_probabilities_QK, other_masks_QF: the same of the other prediction.

    Returns:
        (Q, Q) in [0, 1]: the probability that both are of one class, times the intersection over union of the masks.
    """
    same_class_QQ = probabilities_QK[:, :-1] @ other_probabilities_QK[:, :-1].T
    intersection_QQ = masks_QF @ other_masks_QF.T
    union_QQ = masks_QF.sum(dim=1, keepdim=True) + other_masks_QF.sum(dim=1) - intersection_QQ
    return same_class_QQ * intersection_QQ / union_QQ.clamp_min(torch.finfo(union_QQ.dtype).tiny)


def _points(frame: tuple[int, int], sizes: MaskSizes, device: torch.device) -> Tensor:
    """Centers of a frame's cells as (x, y) in parts of the picture, above 1 in the padding: (F, 2)."""
    rows_Fh, columns_Fw = (
        (torch.arange(cells, device=device) + 0.5) * (padded / (cells * image))
        for cells, padded, image in zip(frame, sizes.padded, sizes.image, strict=True)
    )
    y_F, x_F = torch.meshgrid(rows_Fh, columns_Fw, indexing="ij")
    return torch.stack([x_F.flatten(), y_F.flatten()], dim=1)


def _in_copy(points_P2: Tensor, copy: ImagePrediction, is_mirrored: bool) -> Tensor:
    """From parts of the picture to parts of a copy's padded frame, where its masks are defined: (P, 2)."""
    x_P, y_P = points_P2.unbind(dim=1)
    coordinates = []
    for place_P, axis in ((1 - x_P if is_mirrored else x_P, 1), (y_P, 0)):
        cells = copy.masks.features.shape[-2:][axis]
        place_P = place_P * (copy.sizes.image[axis] / copy.sizes.padded[axis])
        # Beyond the outermost centers the masks go on as they are there.
        coordinates.append(place_P.clamp(0.5 / cells, 1 - 0.5 / cells))
    return torch.stack(coordinates, dim=1)
