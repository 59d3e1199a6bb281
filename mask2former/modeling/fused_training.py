"""Convolutions with a frozen batch norm, and linear maps: sums and ReLU are computed with the product, with gradients.

On a CPU in float32. The norm is y = x * scale + shift with constants: the convolution computes with weight * scale, and
the gradient of the weight is that of the product times scale. Between product and result nothing is kept or written.
"""
# N pictures, (C, h, w) a map, o output channels.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["fused_convolution", "fused_feed_forward", "fused_linear", "is_fused_in_training"]


def is_fused_in_training(x: Tensor, weight: Tensor) -> bool:
    """Whether this module is for these: compilers fuse for themselves, autocast wants half precision."""
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and weight.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
    )


def fused_convolution(
    x: Tensor,
    weight: Tensor,
    scale_o: Tensor,
    shift_o: Tensor,
    options: tuple[Any, ...],
    relu: bool,
    addend: Tensor | None,
) -> Tensor:
    """relu(convolution(x, weight) * scale + shift + addend), differentiable in x, weight and addend.

    Args:
        scale_o, shift_o: constants of each output channel.
        options: stride, padding, dilation and groups of the convolution.
        relu, addend: may be left out.
    """
    y: Tensor = _FusedConvolution.apply(x, weight, scale_o, shift_o, options, relu, addend)
    return y


def fused_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """relu(x @ weight.T + bias), differentiable in all three; ReLU and bias may be left out."""
    y: Tensor = _FusedLinear.apply(x, weight, bias, relu)
    return y


def fused_feed_forward(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
) -> Tensor:
    """relu(x @ weight1.T + bias1) @ weight2.T + bias2, differentiable in all five."""
    y: Tensor = _FusedFeedForward.apply(x, weight1, bias1, weight2, bias2)
    return y


class _FusedConvolution(Function):
    """Products of oneDNN, as PyTorch itself calls them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale_o: Tensor,
        shift_o: Tensor,
        options: tuple[Any, ...],
        relu: bool,
        addend: Tensor | None,
    ) -> Tensor:
        stride, padding, dilation, groups = options
        operator, relu_name = torch.ops.mkldnn._convolution_pointwise, "relu" if relu else "none"
        arguments = (_scaled(weight, scale_o), shift_o, padding, stride, dilation, groups)
        if addend is None:
            y: Tensor = operator(x, *arguments, relu_name, [], "")
        else:
            scaled, *rest = arguments
            y = operator.binary(x, addend, scaled, *rest, "add", 1.0, relu_name if relu else None, [], None)
        # The scaled weight is made again: that is cheaper than keeping it.
        ctx.save_for_backward(x, weight, scale_o, y if relu else None)
        ctx.options = options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale_o, y = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        no_padding = [0] * len(stride)
        grad_x, grad_scaled, _ = torch.ops.aten.convolution_backward(
            grad, x, _scaled(weight, scale_o), None, stride, padding, dilation, False, no_padding, groups, wanted
        )
        grad_weight = None
        if grad_scaled is not None:
            grad_weight = torch.mul(grad_scaled, _for_each_output(scale_o), out=torch.empty_like(weight))
        return grad_x, grad_weight, None, None, None, None, grad if ctx.needs_input_grad[6] else None


def _scaled(weight: Tensor, scale_o: Tensor) -> Tensor:
    """In the memory format in which oneDNN wants it."""
    scaled = torch.empty_like(weight, memory_format=torch.channels_last)
    return torch.mul(weight, _for_each_output(scale_o), out=scaled)


def _for_each_output(scale_o: Tensor) -> Tensor:
    return scale_o[:, None, None, None]


class _FusedLinear(Function):
    """PyTorch itself would write the bias out, add the product, and then go over all with ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        y = _linear(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        return (*_linear_gradients(grad, x, weight, ctx.needs_input_grad), None)


class _FusedFeedForward(Function):
    """The wide tensor between the two maps is made again in the backward pass instead of kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight1, bias1, weight2)
        return _linear(_linear(x, weight1, bias1, relu=True), weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2 = ctx.saved_tensors
        inner = _linear(x, weight1, bias1, relu=True)
        grad_inner, *gradients2 = _linear_gradients(grad, inner, weight2, (True, *ctx.needs_input_grad[3:]))
        grad_inner = torch.ops.aten.threshold_backward(grad_inner, inner, 0)
        return (*_linear_gradients(grad_inner, x, weight1, ctx.needs_input_grad), *gradients2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    return y


def _linear_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, weight and bias that are needed, by products of oneDNN: see `inference_linear`."""
    grad_x = _linear(grad, weight.T) if needs[0] else None
    grad_weight = None
    if needs[1]:
        rows, inputs = (tensor.flatten(0, -2).to_mkldnn() for tensor in (grad, x))
        grad_weight, _ = torch.ops.aten.mkldnn_linear_backward_weights(rows, inputs, weight, False)
    return grad_x, grad_weight, grad.flatten(0, -2).sum(dim=0) if needs[2] else None
