"""The simple feature pyramid of plain Vision Transformers."""

import pytest
import torch

from mask2former.modeling.backbone.simple_feature_pyramid import SimpleFeaturePyramid


@pytest.mark.parametrize(
    ("in_stride", "channels"), [(4, [8, 8, 8, 8]), (8, [4, 8, 8, 8]), (16, [2, 4, 8, 8]), (32, [1, 2, 4, 8])]
)
def test_every_patch_size_gives_the_four_strides(in_stride: int, channels: list[int]) -> None:
    pyramid = SimpleFeaturePyramid(in_channels=8, in_stride=in_stride, out_strides=[4, 8, 16, 32])
    maps = pyramid(torch.randn(2, 8, 128 // in_stride, 64 // in_stride))
    assert [tuple(x.shape) for x in maps] == [
        (2, count, 128 // stride, 64 // stride) for count, stride in zip(channels, [4, 8, 16, 32], strict=True)
    ]
    assert pyramid.out_channels == channels


def test_the_map_itself_and_its_maxima_are_passed_on() -> None:
    pyramid = SimpleFeaturePyramid(in_channels=3, in_stride=16, out_strides=[16, 32])
    x = torch.randn(1, 3, 4, 6)
    same, pooled = pyramid(x)
    assert torch.equal(same, x)
    assert torch.equal(pooled[0, :, 1, 2], x[0, :, 2:4, 4:6].amax(dim=(1, 2)))


def test_finer_maps_depend_on_one_cell_only() -> None:
    pyramid = SimpleFeaturePyramid(in_channels=4, in_stride=16, out_strides=[4])
    x = torch.randn(1, 4, 3, 3)
    (before,) = pyramid(x)
    x[..., 1, 1] += 1
    changed = (pyramid(x)[0] != before).any(dim=1)[0]
    assert changed[4:8, 4:8].all() and changed.sum() == 16


def test_cells_are_normalized_between_transposed_convolutions() -> None:
    first, norm, activation, second = SimpleFeaturePyramid(in_channels=8, in_stride=16, out_strides=[4]).branches[0]
    normalized = norm(first(5 + 3 * torch.randn(1, 8, 2, 2)))
    torch.testing.assert_close(normalized.mean(dim=1), torch.zeros(1, 4, 4))
    torch.testing.assert_close(normalized.var(dim=1, correction=0), torch.ones(1, 4, 4), atol=1e-3, rtol=0)
    assert isinstance(activation, torch.nn.GELU) and second.in_channels == 4
