"""Layers fused in training have the values and gradients of the operations one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.fused_training import (
    fused_convolution,
    fused_feed_forward,
    fused_linear,
    is_fused_in_training,
)
from mask2former.modeling.inference_layers import InferenceLinear, inference_feed_forward, inference_products
from tests.golden import random_normal

Leaves = dict[str, Tensor]


def _leaves(**shapes: tuple[int, ...]) -> Leaves:
    return {name: random_normal(seed, *shape).requires_grad_() for seed, (name, shape) in enumerate(shapes.items())}


def _assert_same(found: Tensor, expected: Tensor, leaves: Leaves) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = random_normal(99, *expected.shape)
    inputs = [leaf for leaf in leaves.values() if leaf.requires_grad]
    mine, theirs = (torch.autograd.grad((value * direction).sum(), inputs) for value in (found, expected))
    for gradient, expected_gradient in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_addend", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [(1, ((1, 1), (0, 0), (1, 1), 1)), (3, ((2, 2), (1, 1), (1, 1), 1)), (3, ((1, 1), (2, 2), (2, 2), 2))],
    ids=["1x1", "stride", "dilation and groups"],
)
def test_a_convolution_with_norm_sum_and_relu(
    kernel: int, options: tuple[Any, ...], relu: bool, with_addend: bool, memory_format: torch.memory_format
) -> None:
    leaves = _leaves(x=(2, 4, 6, 7), weight=(8, 4 // options[3], kernel, kernel))
    x, weight = leaves["x"].contiguous(memory_format=memory_format), leaves["weight"]
    scale, shift = 1 + 0.5 * random_normal(7, 8), random_normal(8, 8)
    expected = F.conv2d(x, weight, None, *options) * scale[:, None, None] + shift[:, None, None]
    addend = None
    if with_addend:
        leaves["addend"] = addend = random_normal(9, *expected.shape).requires_grad_()
        expected = expected + addend
    found = fused_convolution(x, weight, scale, shift, options, relu, addend)
    _assert_same(found, expected.relu() if relu else expected, leaves)


def test_gradients_that_nobody_wants_are_not_made() -> None:
    options = ((1, 1), (0, 0), (1, 1), 1)
    leaves = _leaves(x=(1, 3, 4, 4), weight=(5, 3, 1, 1))
    for frozen in leaves:
        leaf = {name: tensor.detach().requires_grad_(name != frozen) for name, tensor in leaves.items()}
        fused_convolution(
            leaf["x"], leaf["weight"], torch.ones(5), torch.zeros(5), options, True, None
        ).sum().backward()
        assert {name for name, tensor in leaf.items() if tensor.grad is None} == {frozen}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(6, 3), (2, 5, 3), (2, 2, 4, 3)])
def test_a_linear_map_with_relu(shape: tuple[int, ...], with_bias: bool, relu: bool) -> None:
    leaves = _leaves(x=shape, weight=(4, 3), **({"bias": (4,)} if with_bias else {}))
    expected = F.linear(leaves["x"], leaves["weight"], leaves.get("bias"))
    found = fused_linear(leaves["x"], leaves["weight"], leaves.get("bias"), relu)
    _assert_same(found, expected.relu() if relu else expected, leaves)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(6, 3), (2, 5, 3)])
def test_a_feed_forward_network(shape: tuple[int, ...], with_bias: bool) -> None:
    biases = {"bias1": (8,), "bias2": (3,)} if with_bias else {}
    leaves = _leaves(x=shape, weight1=(8, 3), weight2=(3, 8), **biases)
    x, weight1, weight2 = leaves["x"], leaves["weight1"], leaves["weight2"]
    bias1, bias2 = leaves.get("bias1"), leaves.get("bias2")
    expected = F.linear(F.linear(x, weight1, bias1).relu(), weight2, bias2)
    _assert_same(fused_feed_forward(x, weight1, bias1, weight2, bias2), expected, leaves)


def test_a_feed_forward_network_keeps_nothing_as_wide_as_its_inside() -> None:
    layers, kept = [InferenceLinear(3, 8), torch.nn.Linear(8, 3)], []
    x = random_normal(0, 2, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        inference_feed_forward(x, *layers)
    assert len(kept) == 4 and not [tensor for tensor in kept if tensor.shape == (2, 8)]


def test_a_feed_forward_network_drops_only_in_training() -> None:
    layers, dropout = [InferenceLinear(3, 8), torch.nn.Linear(8, 3)], torch.nn.Dropout(0.9)
    x = random_normal(0, 50, 3)
    plain = layers[1](layers[0](x).relu())
    torch.testing.assert_close(inference_feed_forward(x, *layers, dropout.eval()), plain)
    assert not torch.allclose(inference_feed_forward(x, *layers, dropout.train()), plain, atol=1e-3)


def test_what_takes_the_place_of_a_linear_map_is_called() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x, linear1, linear2 = random_normal(0, 2, 3), Doubled(3, 8), torch.nn.Linear(8, 3)
    expected = linear2((2 * F.linear(x, linear1.weight, linear1.bias)).relu())
    torch.testing.assert_close(inference_feed_forward(x, linear1, linear2), expected)


def test_hooks_of_a_linear_map_are_called() -> None:
    linear1, linear2, seen = InferenceLinear(3, 8), torch.nn.Linear(8, 3), []
    linear1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    inference_feed_forward(random_normal(0, 2, 3), linear1, linear2)
    assert seen == [(2, 8)]


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_products_of_batches_and_of_parts_of_a_matrix(batches: int) -> None:
    leaves = _leaves(x=(batches, 5, 4), y=(batches, 4, 9))
    parts = leaves["y"][..., 2:8].transpose(1, 2)
    _assert_same(inference_products(leaves["x"], parts), leaves["x"] @ parts.transpose(1, 2), leaves)


def test_only_float32_outside_autocast_and_with_gradients_is_fused() -> None:
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    assert is_fused_in_training(x, weight)
    assert not is_fused_in_training(x.double(), weight.double())
    assert not is_fused_in_training(x[:0], weight)
    with torch.no_grad():
        assert not is_fused_in_training(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_fused_in_training(x, weight)


def test_a_layer_keeps_its_input_and_output_alone() -> None:
    layer, kept = InferenceLinear(3, 4), []
    x = random_normal(0, 2, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = layer(x, relu=True)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in (x, layer.weight, y)}
