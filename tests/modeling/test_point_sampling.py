"""Reading masks at points, and choosing the points."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.point_sampling import sample_logits, sample_masks, uncertain_points, uniform_points
from tests.golden import golden, random_normal
from tests.modeling.fixed_points import fixed_points

CPU = torch.device("cpu")


def _grid_sampled(masks: Tensor, points: Tensor) -> Tensor:
    return F.grid_sample(masks[:, None].float(), 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def _points(num_maps: int, num_points: int) -> Tensor:
    """Random points, and with them the corners, the edges and the exact middle of the frame."""
    special = torch.tensor([[0, 0], [1, 1], [0, 1], [0.5, 0.5], [0.5, 0], [1, 0.3]])
    drawn = torch.rand(num_maps, num_points - len(special), 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([special.expand(num_maps, -1, -1), drawn], dim=1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(7, 5), (1, 6), (1, 1)])
def test_gathering_masks_equals_grid_sampling(dtype: torch.dtype, size: tuple[int, int]) -> None:
    masks = (torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) > 0.5).to(dtype)
    index = torch.tensor([2, 0, 0, 1])
    points = _points(len(index), 50)
    torch.testing.assert_close(sample_masks(masks, index, points), _grid_sampled(masks[index], points))


def test_rows_may_share_their_points() -> None:
    masks = random_normal(1, 3, 6, 4)
    index = torch.tensor([0, 1, 2, 1])
    shared = _points(1, 20)
    expected = sample_masks(masks, index, shared.expand(4, -1, -1))
    assert torch.equal(sample_masks(masks, index, shared), expected)


def test_no_rows_give_no_values() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert sample_masks(torch.zeros(0, 6, 4, dtype=torch.bool), none, _points(1, 20)).shape == (0, 20)


def test_sampling_equals_the_original() -> None:
    expected = golden()["operators"]["point_sample"]
    maps = random_normal(61, 1, 2, 3, 5)[0]
    points = torch.tensor(expected["points"]).expand(2, -1, -1)
    torch.testing.assert_close(sample_logits(maps, points), torch.tensor(expected["value"]))
    torch.testing.assert_close(sample_masks(maps, torch.arange(2), points), torch.tensor(expected["value"]))


def test_the_gradient_reaches_the_sampled_map() -> None:
    maps = random_normal(2, 2, 4, 4).requires_grad_()
    sample_logits(maps, _points(2, 10)).sum().backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0


def test_most_points_are_the_candidates_nearest_to_the_outline() -> None:
    maps = random_normal(3, 2, 6, 6).requires_grad_()
    settings = {"num_points": 40, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75, "draw_points": fixed_points}
    points = uncertain_points(maps, **settings)
    assert points.shape == (2, 40, 2)
    assert not points.requires_grad

    candidates = fixed_points(2, 120, CPU)
    certainty = sample_logits(maps, candidates).abs()
    limit = certainty.sort(dim=1).values[:, 30:31]  # the first that must not be chosen
    assert (sample_logits(maps, points[:, :30]).abs() < limit).all()
    assert torch.equal(points[:, 30:], fixed_points(2, 10, CPU))


@pytest.mark.parametrize(("share", "num_maps"), [(0.0, 2), (1.0, 2), (0.5, 0)])
def test_extreme_settings_keep_the_number_of_points(share: float, num_maps: int) -> None:
    points = uncertain_points(
        torch.zeros(num_maps, 4, 4), num_points=9, oversample_ratio=1.0, importance_sample_ratio=share
    )
    assert points.shape == (num_maps, 9, 2)


def test_uniform_points_lie_in_the_frame_and_follow_the_seed() -> None:
    torch.manual_seed(5)
    first = uniform_points(2, 500, CPU)
    torch.manual_seed(5)
    assert torch.equal(first, uniform_points(2, 500, CPU))
    assert 0 <= first.min() < 0.1
    assert 0.9 < first.max() <= 1
