"""Mask losses at uncertain points: which points, what losses, and that C++ computes what plain PyTorch does."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.point_losses import (
    ClipPoints,
    chosen_points,
    draw_clip_points,
    paired_dice_losses,
    paired_mask_losses,
    point_losses,
    point_losses_reference,
)
from mask2former.modeling.point_sampling import runs_cpp, sample_masks, uniform_points
from tests.golden import golden, random_normal
from tests.modeling.fixed_points import fixed_points

CPU = torch.device("cpu")
NUM_POINTS = 40

needs_cpp = pytest.mark.skipif(not runs_cpp(torch.empty(0)), reason="the C++ library is not built")


def _points(num_points: int = NUM_POINTS, oversample_ratio: float = 3.0, share: float = 0.75) -> ClipPoints:
    torch.manual_seed(0)
    return draw_clip_points(
        num_points,
        oversample_ratio=oversample_ratio,
        importance_sample_ratio=share,
        draw_points=uniform_points,
        device=CPU,
    )


def _values_and_gradients(function, maps: Tensor, at: ClipPoints, values: Tensor, target: Tensor) -> list[Tensor]:
    leaf = maps.clone().requires_grad_()
    losses = function(leaf, at, values, target)
    return [losses.detach(), *torch.autograd.grad(losses, leaf, random_normal(7, *losses.shape))]


def test_paired_losses_equal_the_original() -> None:
    expected = golden()["operators"]["losses"]
    logits, targets = 3 * random_normal(51, 4, 20)[:3], (random_normal(52, 3, 20) > 0).float()
    assert paired_mask_losses(logits, targets).sum().item() / 2 == pytest.approx(expected["loss_mask"], rel=1e-6)
    assert paired_dice_losses(logits, targets).sum().item() / 2 == pytest.approx(expected["loss_dice"], rel=1e-6)


def test_candidates_come_first_and_fresh_points_after_them() -> None:
    at = draw_clip_points(
        NUM_POINTS, oversample_ratio=3.0, importance_sample_ratio=0.75, draw_points=fixed_points, device=CPU
    )
    assert (at.num_candidates, at.num_uncertain) == (3 * NUM_POINTS, 30)
    assert torch.equal(at.points, torch.cat([fixed_points(1, 120, CPU), fixed_points(1, 10, CPU)], dim=1)[0])


def test_every_map_chooses_the_candidates_nearest_to_its_outline() -> None:
    at, maps = _points(), random_normal(3, 2, 6, 6)
    index = chosen_points(maps, at)
    assert index.shape == (2, NUM_POINTS)
    grid = 2 * at.points[None, None] - 1
    certainty = F.grid_sample(maps[None], grid, align_corners=False)[0, :, 0, : at.num_candidates].abs()
    for map_index, row in enumerate(index):
        assert sorted(row[:30].tolist()) == sorted(certainty[map_index].argsort()[:30].tolist())
        assert row[30:].tolist() == list(range(120, 130))


@needs_cpp
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((24, 17), {}),
        ((1, 1), {}),
        ((9, 30), {"num_points": 3000}),  # enough for the choice to start from a sample
        ((5, 6), {"share": 0.0}),
        ((5, 6), {"share": 1.0, "oversample_ratio": 1.0}),
    ],
)
def test_cpp_equals_the_definition(size: tuple[int, int], settings: dict[str, float]) -> None:
    at = _points(**settings)
    at.points[:2] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])  # whose neighbors lie outside
    maps, target = 4 * random_normal(1, 7, *size), torch.tensor([0, 2, 2, 1, 0, 2, 1])
    values = torch.rand(3, len(at.points), generator=torch.Generator().manual_seed(1))
    found = _values_and_gradients(point_losses, maps, at, values, target)
    expected = _values_and_gradients(point_losses_reference, maps, at, values, target)
    for value, expected_value in zip(found, expected, strict=True):
        torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-6)


@needs_cpp
@pytest.mark.parametrize("kind", ["large", "equal", "in order", "none"])
def test_cpp_equals_the_definition_for_unusual_maps(kind: str) -> None:
    at = _points(3000)
    if kind == "in order":  # every 16th candidate, of which a sample is made, tells nothing of the others
        at.points[0::16] = torch.tensor([0.9, 0.5])
    maps = {
        "large": 200 * random_normal(1, 3, 8, 8),
        "equal": torch.full((3, 8, 8), 0.5),
        "in order": torch.linspace(1, 9, 64).view(1, 8, 8).expand(3, -1, -1),
        "none": torch.zeros(0, 8, 8),
    }[kind]
    values = torch.full((1, len(at.points)), 0.3)  # so that it does not matter which of equal candidates are chosen
    target = torch.zeros(len(maps), dtype=torch.int64)
    found, found_gradient = _values_and_gradients(point_losses, maps, at, values, target)
    expected, expected_gradient = _values_and_gradients(point_losses_reference, maps, at, values, target)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if kind != "equal":  # there the gradient lies where the chosen candidates lie
        torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@needs_cpp
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    at, maps, target = _points(500), random_normal(1, 6, 8, 9), torch.tensor([0, 1, 0, 1, 1, 0])
    values = torch.rand(2, len(at.points), generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(_values_and_gradients(point_losses, maps, at, values, target))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@needs_cpp
def test_over_many_draws_losses_are_those_of_maps_that_draw_their_own_points() -> None:
    num_maps, num_draws = 4, 300
    maps = F.interpolate(4 * random_normal(1, 1, num_maps, 4, 4), (16, 16), mode="bilinear")[0]
    masks = F.interpolate(random_normal(2, 1, num_maps, 5, 5), (64, 64), mode="bilinear")[0] > 0
    torch.manual_seed(0)

    def drawn(maps_of_a_draw: slice, share: float) -> Tensor:
        at = draw_clip_points(
            NUM_POINTS, oversample_ratio=3.0, importance_sample_ratio=share, draw_points=uniform_points, device=CPU
        )
        chosen, values = maps[maps_of_a_draw], sample_masks(masks[maps_of_a_draw], at.points)
        return point_losses(chosen, at, values, torch.arange(len(chosen)))

    def mean_and_error(draws: list[Tensor]) -> tuple[Tensor, Tensor]:
        stacked = torch.stack(draws).double()
        return stacked.mean(dim=0), stacked.std(dim=0) / num_draws**0.5

    shared, error = mean_and_error([drawn(slice(None), 0.75) for _ in range(num_draws)])
    own, own_error = mean_and_error(
        [torch.cat([drawn(slice(m, m + 1), 0.75) for m in range(num_maps)], dim=1) for _ in range(num_draws)]
    )
    uniform, _ = mean_and_error([drawn(slice(None), 0.0) for _ in range(num_draws)])
    bounds = 4 * (error**2 + own_error**2).sqrt()
    assert (bounds < 0.1 * own).all(), "noise would hide a difference"
    assert ((shared - own).abs() < bounds).all()
    assert ((uniform - own).abs() > bounds).all(), "another way of choosing points has other losses"


def test_a_target_that_does_not_exist_is_refused() -> None:
    at = _points()
    with pytest.raises(RuntimeError, match="target must index the 2 rows of values"):
        point_losses(torch.zeros(1, 4, 4), at, torch.zeros(2, len(at.points)), torch.tensor([2]))
