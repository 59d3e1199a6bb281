"""What a model costs: multiply-adds and activations, by operator and by part of the model.

The count of multiply-adds is what papers of this field call FLOPs (one multiplication with its addition is one FLOP).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mask2former.data import build_test_loader

__all__ = ["Costs", "count_costs", "inputs_to_count"]

_aten = torch.ops.aten

#: Operators whose multiply-adds torch knows (our own told it), under the names of the table.
_NAMES = {
    "convolution": "convolution",
    "mm": "matrix product",
    "addmm": "matrix product",
    "bmm": "matrix product",
    "baddbmm": "matrix product",
    "ms_deform_attn": "deformable attention",
    "fused_ms_deform_attn": "deformable attention",
}
#: Operators that torch does not count: name in the table, multiply-adds for each element of the (first) result. The
#: plain deformable attention is bilinear sampling (four neighbors) and a weighted sum.
_ELEMENTWISE = {
    _aten.grid_sampler_2d: ("deformable attention", 4),
    _aten.addcmul: ("deformable attention", 1),
    _aten.addcmul_: ("deformable attention", 1),
    _aten.upsample_bilinear2d: ("resize", 4),
    _aten.native_layer_norm: ("norm", 5),
    _aten.native_group_norm: ("norm", 5),
    _aten.native_batch_norm: ("norm", 2),
    _aten.cudnn_batch_norm: ("norm", 2),
}
#: Fused operators of oneDNN and for GPUs (torch registers some only where it was built with oneDNN, hence texts): a
#: product of this name in the table, then perhaps a sum and ReLU, which are not counted.
_FUSED = {
    "mkldnn._convolution_pointwise": "convolution",
    "mkldnn._linear_pointwise": "matrix product",
    "aten.cudnn_convolution_relu": "convolution",
    "aten.cudnn_convolution_add_relu": "convolution",
    "aten._addmm_activation": "matrix product",
}


class Costs:
    """Counts of one forward pass.

    Attributes:
        flops, activations: (module name, operator) -> count. Activations are the elements that convolutions, matrix
            products and attention write.
    """

    def __init__(self) -> None:
        self.flops: Counter[tuple[str, str]] = Counter()
        self.activations: Counter[tuple[str, str]] = Counter()

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    def flops_by_operator(self) -> dict[str, int]:
        """Multiply-adds of every operator, the most expensive first."""
        return _summed(self.flops, lambda _, operator: operator)

    def activations_by_operator(self) -> dict[str, int]:
        return _summed(self.activations, lambda _, operator: operator)

    def flops_by_part(self) -> dict[str, int]:
        """Multiply-adds of the backbone and of each half of the head; "" is what the model itself did."""
        return _summed(self.flops, lambda module, _: _part(module))


def count_costs(model: nn.Module, batched_inputs: list[dict[str, Any]]) -> Costs:
    """Run the model once, without gradient, and count."""
    with torch.no_grad(), _Counting(model) as counting:
        model(batched_inputs)
    return counting.costs


def inputs_to_count(
    cfg: CfgNode, num_inputs: int, size: tuple[int, int] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Inputs to count with: a black picture of `size` = (height, width), or the first pictures of DATASETS.TEST[0].

    Raises:
        ValueError: the size is no number of pixels, or there is neither a size nor a data set.
    """
    if size is not None:
        if min(size) < 1:
            raise ValueError(f"a picture of {size[0]}x{size[1]} pixels has none")
        height, width = size
        # Detectron2's SemanticSegmentor may ask for the size of the result.
        yield [{"image": torch.zeros(3, height, width), "height": height, "width": width}]
        return
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name a data set, or give a size instead of pictures")
    for _, batch in zip(range(num_inputs), build_test_loader(cfg, cfg.DATASETS.TEST[0]), strict=False):
        yield batch


class _Counting(TorchDispatchMode):
    """Sees every operator that is run, and knows in which module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.costs = Costs()
        self._names = {module: name for name, module in model.named_modules()}
        self._stack = [""]
        self._hooks: list[Any] = []

    def __enter__(self) -> _Counting:
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        packet = operator._overloadpacket
        place = self._stack[-1]
        if packet in flop_registry:
            # Its formulas count multiplications and additions apart.
            name = _NAMES.get(packet.__name__, "attention")
            self.costs.flops[place, name] += flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2
            if name != "deformable attention":  # the plain version has no single result, and tables must not differ
                self.costs.activations[place, name] += _first(result).numel()
        elif str(packet) in _FUSED:
            name, count = _FUSED[str(packet)], _first(result).numel()
            # The weight, after the addend if there is one; of `_addmm_activation` the tokens, whose rows are as long.
            weight = args[2] if operator._overloadname == "binary" else args[1]
            self.costs.flops[place, name] += count * weight[0].numel()
            self.costs.activations[place, name] += count
        elif packet in _ELEMENTWISE:
            name, factor = _ELEMENTWISE[packet]
            self.costs.flops[place, name] += factor * _first(result).numel()
        return result

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._stack.append(self._names.get(module, self._stack[-1]))

    def _leave_module(self, *_: Any) -> None:
        self._stack.pop()


def _first(result: Any) -> Tensor:
    tensor: Tensor = result[0] if isinstance(result, tuple) else result
    return tensor


def _part(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("sem_seg_head") else 1])


def _summed(counts: Counter[tuple[str, str]], key: Callable[[str, str], str]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for (module, operator), count in counts.items():
        sums[key(module, operator)] += count
    return dict(sums.most_common())
