"""The network's kernels as one launch: a GPU is faster with one picture than Python is with a thousand launches.

A CUDA graph is a recording of kernels with their arguments, so it belongs to one size of pictures, and it reads the
weights where they were when it was recorded.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .constants import used_constants

__all__ = ["RECORDED_AT", "CudaGraphs"]

MAX_GRAPHS = 8  # their results, for 800x1333 pixels 68 MB in float32, stay allocated
MAX_SIZES_SEEN = 1024
RECORDED_AT = 4  # the call of a size: recording takes as long as two calls, and saves a good half of each that follows

Outputs = tuple[Tensor, ...]
Network = Callable[[Tensor], Outputs]

_logger = logging.getLogger(__name__)


class _Recording(NamedTuple):
    input: Tensor
    graph: Any
    outputs: Outputs
    kept: list[Any]  # what the kernels read, besides the input and what has a name in the network


class CudaGraphs:
    """Records a network when a size has come a few times, and from then on replays it.

    The network runs as usual wherever a recording would not do the same: on a CPU, with gradients, while it trains,
    where hooks want to be called or something counts operations. Whatever changes its weights or its settings ends all
    recordings.
    """

    def __init__(self) -> None:
        self._recordings: OrderedDict[Any, _Recording] = OrderedDict()  # the one used last comes last
        self._calls: Counter[Any] = Counter()
        self._state: Any = None
        self._pool: Any = None
        self._works = True
        # All share an input and the memory in between: one thread at a time, and kernels of one stream.
        self._lock = threading.RLock()
        self._stream: Any = None

    def clear(self) -> None:
        """Forget all recordings."""
        with self._lock:
            self._recordings.clear()
            self._calls.clear()
            self._pool = self._stream = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaGraphs:
        return CudaGraphs()  # a copy has weights of its own

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[()]]:
        return CudaGraphs, ()

    def run(self, owner: nn.Module, function: Network, x: Tensor, *settings: Any) -> Outputs:
        """`function(x)`; the results are the caller's own.

        Args:
            owner: has all weights that the function reads.
            x: (N, C, H, W).
            settings: on which else it depends.
        """
        state = _state(owner) if self._works and self._is_for(x) and _may_be_replayed() else None
        if state is None:
            return function(x)
        with self._lock:
            return self._run(state, owner, function, x, *settings)

    def _run(self, state: Any, owner: nn.Module, function: Network, x: Tensor, *settings: Any) -> Outputs:
        if state != self._state:
            self.clear()
            self._state = state
        stream = self._current_stream(x)
        if self._stream not in (None, stream):
            return function(x)
        self._stream = stream
        key = (x.shape, x.stride(), x.dtype, x.device, *settings)
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._calls) >= MAX_SIZES_SEEN:
                self._calls.clear()
            self._calls[key] += 1
            if self._calls[key] >= RECORDED_AT:
                recording = self._record(key, owner, function, x)
        if recording is None:
            return function(x)
        self._recordings.move_to_end(key)
        recording.input.copy_(x)
        recording.graph.replay()
        return tuple(output.clone() for output in recording.outputs)

    @staticmethod
    def _is_for(x: Tensor) -> bool:
        return x.is_cuda and not torch.cuda.is_current_stream_capturing()

    @staticmethod
    def _current_stream(x: Tensor) -> Any:
        return torch.cuda.current_stream(x.device)

    def _record(self, key: Any, owner: nn.Module, function: Network, x: Tensor) -> _Recording | None:
        while len(self._recordings) >= MAX_GRAPHS:
            oldest, _ = self._recordings.popitem(last=False)
            del self._calls[oldest]
        try:
            recording = self._recordings[key] = self._recorded(owner, function, x)
        except RuntimeError as error:
            self.clear()
            self._works = False
            _logger.warning("no CUDA graph can be made of this network, it runs as usual: %s", error)
            return None
        return recording

    def _recorded(self, owner: nn.Module, function: Network, x: Tensor) -> _Recording:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(False):  # so that it may be written to in any mode
            static = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
        device_type = x.device.type
        graph = torch.cuda.CUDAGraph()
        # What autocast remembers of weights ends with its context, which is before that of the recording.
        dtype, is_enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
        with (
            torch.cuda.device(x.device),
            torch.autocast(device_type, dtype, enabled=is_enabled, cache_enabled=False),
            used_constants() as constants,
        ):
            function(static)
            # Other threads may go on: those of data loaders allocate memory.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = function(static)
        prepared = [getattr(module, "_prepared", None) for module in owner.modules()]
        return _Recording(static, graph, outputs, [constants, prepared])


def _may_be_replayed() -> bool:
    """Whether nobody but the caller looks at what is computed."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or nn.modules.module._has_any_global_hook()
    )


def _state(owner: nn.Module) -> Any:
    """Changes with the weights, and with what decides on kernels; None while recordings would leave something out."""
    versions: list[Any] = [
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
    ]
    modules = [owner]
    while modules:
        module = modules.pop()
        if module.training or module._forward_hooks or module._forward_pre_hooks:
            return None
        modules.extend(module._modules.values())  # type: ignore[arg-type]  # none of ours is None
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    if tensor.is_inference():  # has no version
                        return None
                    versions.append((tensor.data_ptr(), tensor._version))
    return versions
