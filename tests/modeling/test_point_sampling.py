"""Reading masks at points."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling import point_sampling
from mask2former.modeling.point_sampling import runs_cpp, sample_logits, sample_masks, uniform_points
from tests.golden import golden, random_normal

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
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gathering_masks_equals_grid_sampling(
    dtype: torch.dtype, size: tuple[int, int], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "cpp" and not runs_cpp(torch.empty(0)):
        pytest.skip("the C++ library is not built")
    monkeypatch.setattr(point_sampling, "runs_cpp", lambda tensor: backend == "cpp")
    masks = (torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) > 0.5).to(dtype)
    points = _points(1, 50)
    expected = _grid_sampled(masks, points.expand(3, -1, -1))
    torch.testing.assert_close(sample_masks(masks, points[0]), expected)


def test_no_masks_give_no_values() -> None:
    for dtype in (torch.bool, torch.float32):
        assert sample_masks(torch.zeros(0, 6, 4, dtype=dtype), _points(1, 20)[0]).shape == (0, 20)


def test_sampling_equals_the_original() -> None:
    expected = golden()["operators"]["point_sample"]
    maps = random_normal(61, 1, 2, 3, 5)[0]
    points = torch.tensor(expected["points"]).expand(2, -1, -1)
    torch.testing.assert_close(sample_logits(maps, points), torch.tensor(expected["value"]))
    torch.testing.assert_close(sample_masks(maps, points[0]), torch.tensor(expected["value"]))


def test_the_gradient_reaches_the_sampled_map() -> None:
    maps = random_normal(2, 2, 4, 4).requires_grad_()
    sample_logits(maps, _points(2, 10)).sum().backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0


def test_uniform_points_lie_in_the_frame_and_follow_the_seed() -> None:
    torch.manual_seed(5)
    first = uniform_points(2, 500, CPU)
    torch.manual_seed(5)
    assert torch.equal(first, uniform_points(2, 500, CPU))
    assert 0 <= first.min() < 0.1
    assert 0.9 < first.max() <= 1
