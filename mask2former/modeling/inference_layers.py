"""Convolutions and linear maps that do less, most of all where no gradient is wanted; parameters, buffers and their
names stay.

Batch norms that no longer learn are folded into the convolution before them ("Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", arXiv:1712.05877, Sec. 3.2), sums and ReLU behind a product
are computed with it, weights are brought to autocast's precision once instead of in every call, and on a CPU linear
maps go to oneDNN instead of the BLAS behind PyTorch. What of this pays with gradients is in `fused_training`.
"""
# N pictures, (C, h, w) a map, o output channels.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn

from .fused_training import fused_convolution, fused_feed_forward, fused_linear, is_fused_in_training
from .inference_precision import cpu_has_bfloat16

__all__ = [
    "FoldingConv2d",
    "InferenceLinear",
    "fold_norms",
    "inference_feed_forward",
    "inference_linear",
    "inference_products",
    "use_inference_layers",
]

Weights = tuple[Tensor, Tensor | None]

MAX_NUMBERS_OF_CUDNN = 2**29  # its kernels count in 32 bits, and a result may have four times as many channels


def use_inference_layers(network: nn.Module) -> None:
    """Turn Detectron2's convolutions and residual blocks and PyTorch's linear maps inside `network` into those of this
    module, in place.

    Only objects of exactly these types are touched. Results change by rounding.
    """
    for module in network.modules():
        if type(module) in _REPLACEMENTS:
            module.__class__ = _REPLACEMENTS[type(module)]


def fold_norms(network: nn.Module) -> None:
    """Make the norms inside Detectron2's convolutions, where they do not look at the batch, part of their weights, in
    place and for good.

    For copies that are to be traced: parameters and buffers have other names, values and the memory order of
    channels_last afterwards.
    """
    for module in network.modules():
        if isinstance(module, Conv2d) and _has_fixed_statistics(module.norm):
            weight, bias = _folded(module, module.norm)
            module.weight, module.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
            module.norm = None


class _WithPreparedWeights(nn.Module):
    """Remembers weights made from its parameters and buffers until one of these changes."""

    _prepared: tuple[Any, Weights] | None = None

    def _prepare(self, dtype: torch.dtype, sources: Sequence[Tensor], build: Callable[[], Weights]) -> Weights:
        """`build()` in `dtype`, or the same as last time if no source has changed since.

        Every in-place operation counts up a tensor's version; one on `tensor.data` does not, so `train` and `eval`
        forget as well. Tensors born in inference mode have no version: what is made of them is not remembered.
        """
        if any(source.is_inference() for source in sources):
            return build()
        key = (dtype, *((source.data_ptr(), source._version) for source in sources))
        if self._prepared is None or self._prepared[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                weight, bias = build()
                self._prepared = (key, (weight.to(dtype), None if bias is None else bias.to(dtype)))
        return self._prepared[1]

    def train(self, mode: bool = True) -> Any:
        self._prepared = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._prepared = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which make their own."""
        return {name: value for name, value in super().__getstate__().items() if name != "_prepared"}


class FoldingConv2d(_WithPreparedWeights, Conv2d):
    """Detectron2's convolution; its batch norm, where that has no more to learn, becomes part of its weights."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    norm: Any
    activation: Callable[[Tensor], Tensor] | None

    def forward(self, x: Tensor, relu: bool = False, addend: Tensor | None = None) -> Tensor:
        """Convolution, norm and activation; then, if wanted, a sum with `addend` and ReLU. (N, C, h, w) -> (N, o, ...).

        In between nothing reads the result: sum and ReLU are computed in place.
        """
        dtype, norm = _inference_dtype(x, self.weight), self.norm
        options: Any = (self.stride, self.padding, self.dilation, self.groups)
        if self._is_fused_in_training(x):
            return fused_convolution(x, self.weight, *self._norm_constants(), options, relu, addend)
        if self._is_folded_in_training(x):
            return self._folded_in_training(x, options, relu, addend)
        if dtype is None or not _has_fixed_statistics(norm):
            return _added(super().forward(x), relu, addend)
        tensors = (self.weight, self.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        sources = [tensor for tensor in tensors if tensor is not None]
        weight, bias = self._prepare(dtype, sources, lambda: _folded(self, norm))
        if self.activation is None and not isinstance(self.padding, str):
            if _has_kernel(x, dtype):
                return _fused_convolution(x.to(dtype), weight, bias, options, relu, addend)
            if relu and self.groups == 1 and _has_cudnn(x, dtype):
                return _cudnn_convolution(x.to(dtype), weight, bias, options, addend)
        y = F.conv2d(x.to(dtype), weight, bias, *options)
        return _added(y if self.activation is None else self.activation(y), relu, addend)

    def _is_fused_in_training(self, x: Tensor) -> bool:
        is_plain = self.activation is None and self.bias is None and not isinstance(self.padding, str)
        return is_plain and isinstance(self.norm, FrozenBatchNorm2d) and is_fused_in_training(x, self.weight)

    def _is_folded_in_training(self, x: Tensor) -> bool:
        """With gradients, on a GPU: two passes over the map less, forward and backward, and ten launches."""
        is_plain = self.activation is None and isinstance(self.norm, FrozenBatchNorm2d)
        return is_plain and x.is_cuda and torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def _folded_in_training(self, x: Tensor, options: tuple[Any, ...], relu: bool, addend: Tensor | None) -> Tensor:
        """The norm's factors go to the weight, whose gradient passes through them."""
        scale_o, bias_o = self._norm_constants()
        if self.bias is not None:
            bias_o = torch.addcmul(bias_o, self.bias, scale_o)
        return _added(F.conv2d(x, self.weight * scale_o[:, None, None, None], bias_o, *options), relu, addend)

    def _norm_constants(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel by the frozen norm, as long as it does not change."""
        norm = self.norm
        sources = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        scale_o, shift_o = self._prepare(self.weight.dtype, sources, lambda: _constants(norm))
        assert shift_o is not None, "`_constants` gives both"
        return scale_o, shift_o


class InferenceLinear(_WithPreparedWeights, nn.Linear):
    """PyTorch's linear map."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """(..., in_features) -> (..., out_features), if wanted with ReLU."""
        dtype = _inference_dtype(x, self.weight)
        if dtype is None or dtype == torch.float32:
            return inference_linear(x, self.weight, self.bias, relu)
        sources = [self.weight] if self.bias is None else [self.weight, self.bias]
        return inference_linear(x, *self._prepare(dtype, sources, lambda: (self.weight, self.bias)), relu)


class _InferenceBasicStem(BasicStem):
    """The stem of ResNet with fused convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, o, h, w) at stride 4."""
        return F.max_pool2d(self.conv1(x, True), kernel_size=3, stride=2, padding=1)


class _InferenceBasicBlock(BasicBlock):
    """Two convolutions and a shortcut (ResNet, arXiv:1512.03385, Fig. 5), fused."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, o, ...)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(self.conv1(x, True), True, shortcut)


class _InferenceBottleneckBlock(BottleneckBlock):
    """Three convolutions and a shortcut (ResNet, arXiv:1512.03385, Fig. 5), fused."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, o, ...)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv3(self.conv2(self.conv1(x, True), True), True, shortcut)


_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    Conv2d: FoldingConv2d,
    nn.Linear: InferenceLinear,
    BasicStem: _InferenceBasicStem,
    BasicBlock: _InferenceBasicBlock,
    BottleneckBlock: _InferenceBottleneckBlock,
}


def inference_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """`F.linear`, if wanted with ReLU, by the faster of the two libraries that PyTorch has for it.

    oneDNN is never slower on CPUs: 2.4 times faster than the BLAS on AMD's, a tenth faster on Intel's, where it saves
    writing the bias out first. PyTorch itself goes there only in half precision.
    """
    if is_fused_in_training(x, weight):
        return fused_linear(x, _dense(weight), bias, relu)
    dtype = _inference_dtype(x, weight)
    if dtype is None or not _has_kernel(x, dtype):
        if relu and dtype is not None and bias is not None and x.is_cuda and x.dim() > 1:
            y = torch._addmm_activation(bias.to(dtype), x.to(dtype).flatten(0, -2), weight.to(dtype).T)
            return y.unflatten(0, x.shape[:-1])
        y = F.linear(x, weight, bias)
        return F.relu(y, inplace=True) if relu else y
    bias = None if bias is None else bias.to(dtype)
    weight = _dense(weight.to(dtype))
    y = torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "relu" if relu else "none", [], "")
    return y


def inference_feed_forward(
    x: Tensor, linear1: nn.Module, linear2: nn.Module, dropout: nn.Dropout | None = None
) -> Tensor:
    """linear2(dropout(relu(linear1(x)))): (..., in_features) -> (..., out_features)."""
    drops = dropout is not None and dropout.training and dropout.p > 0
    # What has taken the place of a linear map (quantized, with an adapter, hooks or pruned) is called as it is.
    if _is_plain(linear1) and _is_plain(linear2) and not drops and is_fused_in_training(x, linear1.weight):
        return fused_feed_forward(x, linear1.weight, linear1.bias, linear2.weight, linear2.bias)
    inner = linear1(x, relu=True) if type(linear1) is InferenceLinear else F.relu(linear1(x))
    return linear2(inner if dropout is None else dropout(inner))


def _is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    return type(linear) in (nn.Linear, InferenceLinear) and not any(hooks) and "forward" not in vars(linear)


def _dense(weight: Tensor) -> Tensor:
    """In whichever order of rows and columns; for a part of a matrix oneDNN has but a kernel 1000 times slower."""
    return weight if weight.is_contiguous() or weight.T.is_contiguous() else weight.contiguous()


def inference_products(x_BRC: Tensor, y_BNC: Tensor) -> Tensor:
    """Dot products of R with N vectors in each of B batches, (B, R, N); see `inference_linear`."""
    if x_BRC.device.type != "cpu" or torch.compiler.is_compiling() or not len(x_BRC):
        return torch.bmm(x_BRC, y_BNC.transpose(1, 2))
    products_B = [inference_linear(x_RC, y_NC, None) for x_RC, y_NC in zip(x_BRC, y_BNC, strict=True)]
    return products_B[0].unsqueeze(0) if len(products_B) == 1 else torch.stack(products_B)


def _added(y: Tensor, relu: bool, addend: Tensor | None) -> Tensor:
    if addend is not None:
        y += addend
    return F.relu_(y) if relu else y


def _fused_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], relu: bool, addend: Tensor | None
) -> Tensor:
    """Convolution, sum and ReLU in one pass of oneDNN: PyTorch's compiler emits these operators, too."""
    stride, padding, dilation, groups = options
    operator, arguments = torch.ops.mkldnn._convolution_pointwise, (bias, padding, stride, dilation, groups)
    relu_name = "relu" if relu else "none"
    if addend is None:
        return operator(x, weight, *arguments, relu_name, [], "")
    return operator.binary(x, addend.to(x.dtype), weight, *arguments, "add", 1.0, relu_name if relu else None, [], None)


def _cudnn_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], addend: Tensor | None
) -> Tensor:
    """Convolution, sum and ReLU in one pass of cuDNN."""
    if addend is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *options)
    return torch.cudnn_convolution_add_relu(x, weight, addend.to(x.dtype), 1.0, bias, *options)


def _has_cudnn(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether PyTorch's own convolution would go there, too: its fused form goes nowhere else."""
    if not (x.is_cuda and torch.version.cuda is not None and torch.backends.cudnn.enabled):
        return False
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    return 0 < x.numel() < MAX_NUMBERS_OF_CUDNN and torch.backends.cudnn.is_available()


def _has_kernel(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of that kind."""
    is_known = dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_has_bfloat16())
    return is_known and x.device.type == "cpu" and x.numel() > 0 and torch.backends.mkldnn.is_available()


def _inference_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """In which a layer computes; None where that is PyTorch's business: with gradients, and for odd dtypes.

    Compilers, too, are left alone: they fold and fuse for themselves, and could not trace what is remembered.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return dtype if x.dtype in (torch.float32, dtype) and weight.dtype in (torch.float32, dtype) else None
    return torch.float32 if x.dtype == weight.dtype == torch.float32 else None


def _has_fixed_statistics(norm: nn.Module | None) -> bool:
    """Whether it is a batch norm that does not look at the batch."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return not norm.training and norm.running_mean is not None
    return isinstance(norm, FrozenBatchNorm2d)


def _constants(norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel."""
    scale_o = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale_o, norm.bias - norm.running_mean * scale_o


def _folded(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that includes the norm after it. Computed in float64: it is done once."""
    scale_o = (norm.running_var.double() + norm.eps).rsqrt()
    scale_o = scale_o if norm.weight is None else scale_o * norm.weight.double()
    offset_o = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    bias_o = offset_o * scale_o if norm.bias is None else offset_o * scale_o + norm.bias.double()
    weight = (conv.weight.double() * scale_o[:, None, None, None]).to(conv.weight.dtype)
    return weight.contiguous(memory_format=torch.channels_last), bias_o.to(conv.weight.dtype)
