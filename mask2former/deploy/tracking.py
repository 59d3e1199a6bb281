"""Which object of earlier frames each segment is: overlap of masks and likeness of queries, all pairs weighed at once.

As in MinVIS (arXiv:2208.02245, Sec. 3.2) what the network says of an object stays nearly the same from frame to frame;
its mask embedding serves for that. It changes as the object moves on, so after a while in hiding the place counts too.
"""
# M objects known before, N found now, C channels, (..., h, w) cells of the frames in which masks are compared.

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.modeling.postprocessing import MaskSizes

__all__ = [
    "STUFF",
    "Sightings",
    "best_of_each_object",
    "centers",
    "matched_pairs",
    "moved",
    "similarities",
    "without_padding",
]

#: The `kinds` of everything that is stuff: it has no class to agree in.
STUFF = -1

# Of the sum of both measures, each at most 1. Without any overlap, mask embeddings must be this like: on digit scenes
# the cosine of one object in two frames is above 0.96 in 99 of 100 cases, that of two objects below 0.7 in 95.
_LEAST_SIMILARITY = 0.8
# Two queries of one frame whose masks overlap more than this, in one kind, are the same object twice.
_DUPLICATE_OVERLAP = 0.7


class Sightings(NamedTuple):
    """N objects in a frame, or in the frames that two clips share."""

    masks: Tensor  # (N, ..., h, w) bool
    embeddings: Tensor  # (N, C) mask embeddings of their queries
    kinds: Tensor  # (N,) int64, the class of a thing, else `STUFF`; different kinds are different objects


def similarities(known: Sightings, found: Sightings) -> Tensor:
    """(M, N) in -1..2: intersection over union of the masks and cosine of the embeddings, added."""
    cosines = F.normalize(known.embeddings, dim=-1) @ F.normalize(found.embeddings, dim=-1).T
    return _overlaps(known.masks, found.masks) + cosines


def matched_pairs(known: Sightings, found: Sightings) -> list[tuple[int, int]]:
    """Pairs (object known before, object found now), each at most once, that are most similar in total.

    Kinds must agree, and a pair must be similar enough to be one object at all.
    """
    if not len(known.kinds) or not len(found.kinds):
        return []
    gains = (similarities(known, found) - _LEAST_SIMILARITY).clamp_min(0)
    gains = gains * (known.kinds[:, None] == found.kinds)
    gains_MN = gains.double().cpu().numpy()
    rows, columns = linear_sum_assignment(gains_MN, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if gains_MN[row, column] > 0]


def best_of_each_object(found: Sightings, scores: Tensor) -> list[int]:
    """For each of N sightings in one frame the one that stands for it: itself, or a better one of the same object.

    Args:
        found: what may be an object.
        scores: (N,), the better the higher.
    """
    is_same = (_overlaps(found.masks, found.masks) > _DUPLICATE_OVERLAP) & (found.kinds[:, None] == found.kinds)
    is_same_NN = is_same.cpu().numpy()
    best = list(range(len(is_same_NN)))
    stands_for_others = [True] * len(best)
    order = scores.argsort(descending=True, stable=True).tolist()
    for place, index in enumerate(order):
        if stands_for_others[index]:
            for other in order[place + 1 :]:
                if is_same_NN[index, other] and stands_for_others[other]:
                    best[other], stands_for_others[other] = index, False
    return best


def without_padding(maps: Tensor, sizes: MaskSizes) -> Tensor:
    """The cells that lie, at least in part, in the picture: (..., h4, w4) of the padded one -> (..., h, w)."""
    height, width = (
        -(-cells * image // padded)
        for cells, image, padded in zip(maps.shape[-2:], sizes.image, sizes.padded, strict=True)
    )
    return maps[..., :height, :width]


def centers(masks: Tensor) -> list[tuple[float, float]]:
    """Of N masks (N, h, w) the mean (row, column) of the pixels, as shares of h and w; the middle for an empty mask."""
    pixels_Nhw = masks.float()
    areas_N = pixels_Nhw.sum(dim=(1, 2))
    means = []
    for dim in (1, 2):
        length = masks.shape[dim]
        places = (torch.arange(length, device=masks.device) + 0.5) / length
        sums_N = pixels_Nhw.sum(dim=3 - dim) @ places
        means.append(torch.where(areas_N > 0, sums_N / areas_N.clamp_min(1), 0.5))
    return [(row, column) for row, column in torch.stack(means, dim=1).tolist()]


def moved(mask: Tensor, way: tuple[float, float]) -> Tensor:
    """The mask (h, w) further down and to the right by these shares of h and w; what leaves the picture is gone."""
    rows, columns = (
        max(-length, min(round(share * length), length)) for share, length in zip(way, mask.shape, strict=True)
    )
    return F.pad(mask, (columns, -columns, rows, -rows))


def _overlaps(masks_M: Tensor, masks_N: Tensor) -> Tensor:
    """Intersection over union of all pairs, (M, N); 0 for two empty masks."""
    pixels_MP, pixels_NP = masks_M.flatten(1).float(), masks_N.flatten(1).float()
    intersections_MN = pixels_MP @ pixels_NP.T
    unions_MN = pixels_MP.sum(dim=1)[:, None] + pixels_NP.sum(dim=1) - intersections_MN
    return intersections_MN / unions_MN.clamp_min(1)
