"""Who is who: overlap and likeness of all pairs, each object at most once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mask2former.deploy.tracking import STUFF, Sightings, best_of_each_object, matched_pairs, without_padding
from mask2former.modeling.postprocessing import MaskSizes


def box(left: int, width: int = 4) -> Tensor:
    mask = torch.zeros(8, 24, dtype=torch.bool)
    mask[2:6, left : left + width] = True
    return mask


def looks(*angles: float) -> Tensor:
    """Embeddings at these angles in degrees: their cosines are known."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def sightings(masks: list[Tensor], angles: list[float], kinds: list[int]) -> Sightings:
    return Sightings(torch.stack(masks), looks(*angles), torch.tensor(kinds))


def test_what_looks_alike_is_found_wherever_it_is() -> None:
    known = sightings([box(0), box(10)], [0, 90], [1, 1])
    found = sightings([box(15), box(5)], [95, 5], [1, 1])
    assert sorted(matched_pairs(known, found)) == [(0, 1), (1, 0)]


def test_what_stays_in_its_place_may_change_its_looks() -> None:
    known = sightings([box(0), box(10)], [0, 0], [1, 1])
    found = sightings([box(11), box(1)], [70, 70], [1, 1])
    assert sorted(matched_pairs(known, found)) == [(0, 1), (1, 0)]


def test_pairs_are_best_in_total() -> None:
    """The first one would like the other's best even more: alone it would take it."""
    known = sightings([box(0), box(0)], [0, 20], [1, 1])
    found = sightings([box(0), box(20)], [10, 30], [1, 1])
    assert sorted(matched_pairs(known, found)) == [(0, 0), (1, 1)]


def test_things_of_different_classes_are_different_objects() -> None:
    known = sightings([box(0)], [0], [1])
    assert matched_pairs(known, sightings([box(0)], [0], [2])) == []
    assert matched_pairs(known, sightings([box(0)], [0], [STUFF])) == []


def test_what_has_neither_overlap_nor_likeness_is_new() -> None:
    assert matched_pairs(sightings([box(0)], [0], [1]), sightings([box(10)], [60], [1])) == []


@pytest.mark.parametrize(("num_known", "num_found"), [(0, 2), (2, 0), (0, 0)])
def test_of_nothing_there_are_no_pairs(num_known: int, num_found: int) -> None:
    both = sightings([box(0), box(10)], [0, 90], [1, 1])
    first, second = (Sightings(*(values[:number] for values in both)) for number in (num_known, num_found))
    assert matched_pairs(first, second) == []


def test_without_common_frames_looks_decide() -> None:
    known, found = (
        Sightings(torch.zeros(2, 0, 8, 24, dtype=torch.bool), looks(*angles), torch.tensor([1, 1]))
        for angles in ((0, 90), (88, 3))
    )
    assert sorted(matched_pairs(known, found)) == [(0, 1), (1, 0)]


def test_the_best_of_several_queries_stands_for_an_object() -> None:
    found = sightings([box(0), box(0), box(0, 3), box(12), box(0)], [0] * 5, [1, 1, 1, 1, 2])
    assert best_of_each_object(found, torch.tensor([0.6, 0.9, 0.7, 0.5, 0.8])) == [1, 1, 1, 3, 4]


def test_cells_of_the_padding_are_cut_off_and_halves_are_kept() -> None:
    maps = torch.zeros(3, 2, 8, 12)
    assert without_padding(maps, MaskSizes((32, 48), (29, 25), (100, 100))).shape == (3, 2, 8, 7)
