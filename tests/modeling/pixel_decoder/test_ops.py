"""Multi-scale deformable attention: the operator and the layer around it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops import (
    MSDeformAttn,
    available_backends,
    ms_deform_attn,
    ms_deform_attn_reference,
)
from mask2former.modeling.pixel_decoder.ops.functional import fused_ms_deform_attn
from tests.golden import golden, random_normal

SIZES = [(3, 4), (1, 5), (2, 1)]


def make_arguments(sizes=SIZES, *, batch=2, queries=5, heads=2, width=3, points=2, dtype=torch.float64, spread=1.6):
    """Value, locations reaching outside the maps, weights."""
    torch.manual_seed(0)
    num_tokens = sum(height * width for height, width in sizes)
    value = torch.randn(batch, num_tokens, heads, width, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(sizes), points, 2, dtype=dtype) * spread - (spread - 1) / 2
    weights = torch.randn(batch, queries, heads, len(sizes), points, dtype=dtype)
    return value, locations, weights


def slow_ms_deform_attn(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The formula, one number at a time."""
    batch, queries, heads, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    starts = [sum(height * width for height, width in sizes[:level]) for level in range(levels)]
    for b, q, m, level, k in np.ndindex(batch, queries, heads, levels, points):
        height, width = sizes[level]
        x = locations[b, q, m, level, k, 0].item() * width - 0.5
        y = locations[b, q, m, level, k, 1].item() * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    pixel = value[b, starts[level] + row * width + column, m]
                    out[b, q, m] += weights[b, q, m, level, k] * share * pixel
    return out.flatten(2)


def test_the_reference_equals_the_formula() -> None:
    value, locations, weights = make_arguments()
    expected = slow_ms_deform_attn(value, SIZES, locations, weights)
    torch.testing.assert_close(ms_deform_attn_reference(value, SIZES, locations, weights), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("x", [-3.0, -0.125, 0.0, 0.125, 0.25, 0.875, 1.0, 1.125, 40.0])
def test_centers_borders_and_the_outside_equal_the_formula(x: float) -> None:
    value, locations, weights = make_arguments([(4, 4)])
    locations[..., 0] = x
    locations[..., 1] = 1 - x
    expected = slow_ms_deform_attn(value, [(4, 4)], locations, weights)
    torch.testing.assert_close(ms_deform_attn(value, [(4, 4)], locations, weights), expected, atol=1e-12, rtol=0)


def test_the_center_of_a_cell_reads_that_cell() -> None:
    value, _, _ = make_arguments([(2, 3)], heads=1)
    location = torch.tensor([2.5 / 3, 0.5 / 2], dtype=value.dtype).expand(2, 1, 1, 1, 1, 2)
    read = ms_deform_attn(value, [(2, 3)], location, torch.ones(2, 1, 1, 1, 1, dtype=value.dtype))
    torch.testing.assert_close(read[:, 0], value[:, 2, 0])


def test_the_reference_reproduces_the_published_operator() -> None:
    value = random_normal(41, 2, 18, 2, 3)
    locations = torch.from_numpy((np.random.RandomState(42).rand(2, 5, 2, 2, 3, 2) * 1.6 - 0.3).astype(np.float32))
    weights = random_normal(43, 2, 5, 2, 6).softmax(-1).unflatten(-1, (2, 3))
    expected = torch.tensor(golden()["operators"]["ms_deform_attn"]["value"])
    read = ms_deform_attn_reference(value, [(3, 4), (2, 3)], locations, weights)
    torch.testing.assert_close(read, expected, atol=1e-6, rtol=0)


def test_gradients_of_all_three_arguments_are_exact() -> None:
    value, locations, weights = make_arguments(queries=3)
    arguments = [argument.requires_grad_() for argument in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, p, w: ms_deform_attn_reference(v, SIZES, p, w), arguments)


def test_shapes_may_be_a_tensor() -> None:
    value, locations, weights = make_arguments()
    from_list = ms_deform_attn(value, SIZES, locations, weights)
    assert torch.equal(ms_deform_attn(value, torch.tensor(SIZES), locations, weights), from_list)


def test_the_dispatching_function_equals_the_reference() -> None:
    value, locations, weights = make_arguments()
    expected = ms_deform_attn_reference(value, SIZES, locations, weights)
    torch.testing.assert_close(ms_deform_attn(value, SIZES, locations, weights), expected)


def test_the_reference_is_always_available() -> None:
    assert "reference" in available_backends()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_most_of_its_digits(dtype: torch.dtype) -> None:
    value, locations, weights = make_arguments()
    exact = ms_deform_attn_reference(value, SIZES, locations, weights)
    # As under autocast: half values, locations in float32.
    rounded = ms_deform_attn(value.to(dtype), SIZES, locations.float(), weights.float())
    assert rounded.dtype == dtype
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(rounded.double(), exact, atol=4 * epsilon, rtol=2 * epsilon)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}])
def test_nothing_to_do_gives_nothing_and_zero_gradients(empty: dict[str, int]) -> None:
    value, locations, weights = make_arguments(**empty)
    value.requires_grad_()
    read = ms_deform_attn(value, SIZES, locations, weights)
    read.sum().backward()
    assert read.shape == (value.shape[0], locations.shape[1], 6)
    assert not value.grad.any()


def test_memory_layout_does_not_matter() -> None:
    value, locations, weights = make_arguments()
    expected = ms_deform_attn(value, SIZES, locations, weights)
    strided = [argument.transpose(0, 1).contiguous().transpose(0, 1) for argument in (value, locations, weights)]
    torch.testing.assert_close(ms_deform_attn(strided[0], SIZES, *strided[1:]), expected)


def test_pictures_of_a_batch_do_not_mix() -> None:
    value, locations, weights = make_arguments()
    together = ms_deform_attn(value, SIZES, locations, weights)
    second = ms_deform_attn(value[1:], SIZES, locations[1:], weights[1:])
    torch.testing.assert_close(together[1:], second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, s, p, w: (v.flatten(2), s, p, w), "value must be"),
        (lambda v, s, p, w: (v, s[:2], p[:, :, :, :2], w[:, :, :, :2]), "spatial_shapes .* add up to the 19 tokens"),
        (lambda v, s, p, w: (v, [], p, w), "spatial_shapes must hold at least one level"),
        (lambda v, s, p, w: (v, [(3, 4, 1)] * 3, p, w), "spatial_shapes must hold pairs"),
        (lambda v, s, p, w: (v, torch.tensor(s).float(), p, w), "spatial_shapes must be int64"),
        (lambda v, s, p, w: (v, s, p[..., :1], w), "sampling_locations must be"),
        (lambda v, s, p, w: (v, s, p[:, :, :, :2], w), "sampling_locations must be"),
        (lambda v, s, p, w: (v, s, p, w[:, :4]), "attention_weights must be"),
        (lambda v, s, p, w: (v.long(), s, p, w), "value must be floating point"),
        (lambda v, s, p, w: (v, s, p, w.to("meta")), "attention_weights must be on the device of value"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message: str) -> None:
    value, locations, weights = make_arguments()
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*change(value, SIZES, locations, weights))


def make_fused_arguments(dtype=torch.float64, *, shared_points: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, reference points, offsets in cells, logits."""
    value, _, logits = make_arguments(dtype=dtype)
    points = torch.rand(1 if shared_points else 2, 5, 3, 2, dtype=dtype)
    offsets = torch.randn(2, 5, 2, 3, 2, 2, dtype=dtype)
    return value, points, offsets, logits


def unfused(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    cells = torch.tensor([(width, height) for height, width in SIZES], dtype=offsets.dtype)
    locations = points[:, :, None, :, None] + offsets / cells[:, None]
    weights = logits.flatten(3).softmax(dim=-1).view_as(logits)
    return ms_deform_attn_reference(value, SIZES, locations, weights)


@pytest.mark.parametrize("shared_points", [False, True])
def test_the_fused_function_makes_the_same_locations_and_weights(shared_points: bool) -> None:
    arguments = make_fused_arguments(shared_points=shared_points)
    fused = fused_ms_deform_attn(arguments[0], SIZES, *arguments[1:])
    torch.testing.assert_close(fused, unfused(*arguments), atol=1e-12, rtol=0)


def test_gradients_of_the_fused_function_are_exact() -> None:
    arguments = [argument.requires_grad_() for argument in make_fused_arguments()]
    assert torch.autograd.gradcheck(lambda v, p, o, a: fused_ms_deform_attn(v, SIZES, p, o, a), arguments)


def test_the_fused_function_keeps_float32_where_only_the_value_is_half() -> None:
    value, *rest = make_fused_arguments()
    exact = unfused(value, *rest)
    rounded = fused_ms_deform_attn(value.bfloat16(), SIZES, *(argument.float() for argument in rest))
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, atol=0.03, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, p, o, a: (v, p[:, :4], o, a), "reference_points must be"),
        (lambda v, p, o, a: (v, p.long(), o, a), "reference_points must be floating point"),
        (lambda v, p, o, a: (v, p, o[:1], a), "sampling_offsets must be"),
        (lambda v, p, o, a: (v, p, o, a[..., :1]), "attention_logits must be"),
    ],
)
def test_fused_arguments_that_do_not_fit_are_named(change, message: str) -> None:
    value, points, offsets, logits = change(*make_fused_arguments())
    with pytest.raises(ValueError, match=message):
        fused_ms_deform_attn(value, SIZES, points, offsets, logits)


def make_layer() -> MSDeformAttn:
    torch.manual_seed(1)
    layer = MSDeformAttn(16, n_levels=3, n_heads=8, n_points=4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.double()


def make_layer_inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return (
        torch.randn(2, 5, 16, dtype=torch.float64),
        torch.rand(2, 5, 3, 2, dtype=torch.float64),
        torch.randn(2, 19, 16, dtype=torch.float64),
    )


def layer_by_hand(layer: MSDeformAttn, query: Tensor, tokens: Tensor, locate) -> Tensor:
    offsets = layer.sampling_offsets(query).view(2, 5, 8, 3, 4, 2)
    weights = F.softmax(layer.attention_weights(query).view(2, 5, 8, 12), dim=-1).view(2, 5, 8, 3, 4)
    value = layer.value_proj(tokens).view(2, 19, 8, 2)
    return layer.output_proj(slow_ms_deform_attn(value, SIZES, locate(offsets), weights))


def test_the_layer_moves_points_by_offsets_in_cells() -> None:
    layer, (query, points, tokens) = make_layer(), make_layer_inputs()
    cells = torch.tensor([(width, height) for height, width in SIZES], dtype=torch.float64)
    expected = layer_by_hand(layer, query, tokens, lambda o: points[:, :, None, :, None] + o / cells[:, None])
    torch.testing.assert_close(layer(query, points, tokens, SIZES), expected)


def test_the_layer_moves_points_by_offsets_relative_to_boxes() -> None:
    layer, (query, centers, tokens) = make_layer(), make_layer_inputs()
    boxes = torch.cat([centers, torch.rand_like(centers)], dim=-1)

    def locate(offsets: Tensor) -> Tensor:
        return boxes[:, :, None, :, None, :2] + offsets / 4 * boxes[:, :, None, :, None, 2:] * 0.5

    torch.testing.assert_close(layer(query, boxes, tokens, SIZES), layer_by_hand(layer, query, tokens, locate))


def test_padded_tokens_are_read_as_zeros() -> None:
    layer, (query, points, tokens) = make_layer(), make_layer_inputs()
    padding = torch.zeros(2, 19, dtype=torch.bool)
    padding[1, 10:] = True
    masked = layer(query, points, tokens, SIZES, None, padding)
    tokens[1, 10:] = 1e6  # whatever stands there must not matter
    torch.testing.assert_close(layer(query, points, tokens, SIZES, None, padding), masked)
    assert (layer(query, points, tokens, SIZES) - masked).abs().max() > 1


def test_the_layer_has_the_published_parameters() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in MSDeformAttn(256, 3, 8, 4).state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (192, 256),
        "sampling_offsets.bias": (192,),
        "attention_weights.weight": (96, 256),
        "attention_weights.bias": (96,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }


def test_a_new_layer_looks_in_the_eight_compass_directions() -> None:
    layer = MSDeformAttn(16, n_levels=2, n_heads=8, n_points=3)
    offsets = layer.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for point in range(3):
        expected = (point + 1) * torch.tensor(compass, dtype=torch.float32)
        torch.testing.assert_close(offsets[:, 1, point], expected, atol=1e-5, rtol=0)
    assert not layer.sampling_offsets.weight.any()
    assert not layer.attention_weights.weight.any()
    assert not layer.attention_weights.bias.any()


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="NHEADS"):
        MSDeformAttn(20, n_heads=8)


def test_a_wrong_number_of_levels_is_refused() -> None:
    layer, (query, points, tokens) = make_layer(), make_layer_inputs()
    with pytest.raises(ValueError, match="3 levels"):
        layer(query, points, tokens, SIZES[:2])


def test_reference_points_of_wrong_width_are_refused() -> None:
    layer, (query, points, tokens) = make_layer(), make_layer_inputs()
    with pytest.raises(ValueError, match="reference_points"):
        layer(query, points[..., :1], tokens, SIZES)
