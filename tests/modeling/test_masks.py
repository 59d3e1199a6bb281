"""Mask logits as a product: every way to read them agrees with the dense product."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.masks import MaskLogits, resize_features

LAYERS, CLIPS, FRAMES, QUERIES, CHANNELS, HEIGHT, WIDTH = 3, 2, 2, 5, 4, 6, 7


@pytest.fixture
def masks() -> MaskLogits:
    generator = torch.Generator().manual_seed(0)
    return MaskLogits(
        torch.randn(LAYERS, CLIPS, QUERIES, CHANNELS, generator=generator, dtype=torch.float64),
        torch.randn(CLIPS, FRAMES, CHANNELS, HEIGHT, WIDTH, generator=generator, dtype=torch.float64),
    )


def _dense_frames(masks: MaskLogits) -> Tensor:
    return masks.dense().flatten(0, 3)  # (everything, h, w)


def test_a_dense_logit_is_the_inner_product_of_embedding_and_pixel(masks: MaskLogits) -> None:
    dense = masks.dense()
    assert dense.shape == (LAYERS, CLIPS, QUERIES, FRAMES, HEIGHT, WIDTH)
    expected = masks.embeddings[2, 1, 4] @ masks.features[1, 0, :, 3, 5]
    torch.testing.assert_close(dense[2, 1, 4, 0, 3, 5], expected)


@pytest.mark.parametrize("size", [(3, 4), (12, 14), (HEIGHT, WIDTH), (1, 1)])
def test_resizing_the_features_equals_resizing_the_logits(masks: MaskLogits, size: tuple[int, int]) -> None:
    expected = F.interpolate(_dense_frames(masks)[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(_dense_frames(masks.resized(size)), expected)


def test_sampling_the_features_equals_sampling_the_logits(masks: MaskLogits) -> None:
    points = torch.rand(CLIPS, 9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampled = masks.at_points(points)
    assert sampled.shape == (LAYERS, CLIPS, QUERIES, FRAMES * 9)
    for clip in range(CLIPS):
        logits = masks.dense()[:, clip].flatten(0, 2)[None]
        expected = F.grid_sample(logits, 2 * points[clip, None, None] - 1, align_corners=False)[0, :, 0]
        torch.testing.assert_close(sampled[:, clip].reshape(-1, 9), expected)


def test_weighted_sums_are_those_of_the_dense_logits(masks: MaskLogits) -> None:
    weights = torch.rand(
        CLIPS, 4, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected = torch.stack(
        [(masks.dense() * weights[:, other].unsqueeze(1)).sum(dim=(-3, -2, -1)) for other in range(4)], dim=-1
    )
    torch.testing.assert_close(masks.weighted_sums(weights), expected)


def test_selected_queries_equal_their_dense_logits(masks: MaskLogits) -> None:
    layers, queries = torch.tensor([0, 2, 2]), torch.tensor([4, 1, 0])
    torch.testing.assert_close(masks.select(1, (layers, queries)), masks.dense()[layers, 1, queries])
    torch.testing.assert_close(masks.layer(2).select(0, queries), masks.dense()[2, 0, queries])


def test_selecting_nothing_gives_an_empty_connected_tensor(masks: MaskLogits) -> None:
    masks.embeddings.requires_grad_()
    nothing = torch.zeros(0, dtype=torch.long)
    selected = masks.layer(0).select(0, nothing)
    assert selected.shape == (0, FRAMES, HEIGHT, WIDTH)
    selected.sum().backward()
    assert masks.embeddings.grad is not None and not masks.embeddings.grad.any()


@pytest.mark.parametrize("num_frames", [1, 2])
def test_resizing_keeps_the_memory_format(num_frames: int) -> None:
    # A single frame that was taken for the other format would be copied as a whole before it is resized.
    maps = torch.randn(num_frames, 3, 8, 10).contiguous(memory_format=torch.channels_last)
    resized = resize_features(maps.unflatten(0, (1, num_frames)), (4, 5)).flatten(0, 1)
    assert resized.stride()[1:] == (1, 15, 3)
    torch.testing.assert_close(resized, F.interpolate(maps.contiguous(), size=(4, 5), mode="bilinear"))
    assert resize_features(maps.contiguous().unflatten(0, (1, num_frames)), (4, 5)).is_contiguous()
