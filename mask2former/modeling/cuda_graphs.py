"""The network's kernels as one launch: a GPU is faster with one picture than Python is with a thousand launches.

A CUDA graph is a recording of kernels with their arguments, so it belongs to one size of pictures, and it reads the
weights where they were when it was recorded.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .constants import used_constants

__all__ = ["RECORDED_AT", "CudaGraphs"]

MAX_GRAPHS = 8  # their results, for 800x1333 pixels 68 MB in float32, stay allocated
MAX_SIZES_SEEN = 1024
MAX_COUNT = 32  # of calls of a size that decide who keeps a recording: who was needed long ago shall not for ever
RECORDED_AT = 4  # the call of a size: recording takes as long as two calls, and saves a good half of each that follows

Outputs = tuple[Tensor, ...]
Network = Callable[[Tensor], Outputs]

_logger = logging.getLogger(__name__)


# Whatever the device is told to do meanwhile ends up in the recording, or makes it fail.
_recording_lock = threading.Lock()


class _Recording(NamedTuple):
    input: Tensor
    graph: Any
    outputs: Outputs
    kept: list[Any]  # what the kernels may read, besides the input, parameters and buffers


class CudaGraphs:
    """Records a network when a size has come a few times, and from then on replays it.

    The network runs as usual wherever a recording would not do the same: on a CPU, with gradients, while it trains,
    where hooks or a replaced `forward` want to be called, or something counts operations. Other weights end all
    recordings. Attributes of modules and PyTorch's switches of kernels count as they were when a size was recorded.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Args:
        enabled: False lets the network run as usual everywhere, and so it is once a recording has failed.
        """
        self._enabled = enabled
        self._recordings: dict[Any, _Recording] = {}
        self._calls: Counter[Any] = Counter()
        self._state: Any = None
        # All share an input and the memory in between: one thread at a time, and kernels of one stream.
        self._lock = threading.RLock()
        self._stream: Any = None
        self._pool: Any = None
        self._recording_stream: Any = None

    def clear(self) -> None:
        """Forget all recordings, and give back their memory."""
        with self._lock:
            self._recordings.clear()
            self._calls.clear()
            self._stream = self._pool = self._recording_stream = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaGraphs:
        return CudaGraphs(self._enabled)  # a copy has weights of its own

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[bool]]:
        return CudaGraphs, (self._enabled,)

    def run(self, owner: nn.Module, function: Network, x: Tensor, *settings: Any) -> Outputs:
        """`function(x)`; the results are the caller's own.

        Args:
            owner: has all weights that the function reads.
            x: (N, C, H, W).
            settings: on which else it depends.
        """
        state = _state(owner) if self._enabled and self._is_for(x) and _may_be_replayed() else None
        if state is None:
            return function(x)
        with self._lock:
            if state != self._state:
                self.clear()
                self._state = state
            recording = self._recording_for(owner, function, x, settings)
            if recording is not None:
                recording.input.copy_(x)
                recording.graph.replay()
                return tuple(output.clone() for output in recording.outputs)
            try:
                return function(x)
            except torch.OutOfMemoryError:
                if not self._recordings:
                    raise
        # Memory that recordings keep is no allocator's to take back.
        self.clear()
        torch.cuda.empty_cache()
        return function(x)

    def _recording_for(
        self, owner: nn.Module, function: Network, x: Tensor, settings: tuple[Any, ...]
    ) -> _Recording | None:
        stream = self._current_stream(x)
        if self._stream not in (None, stream):
            return None
        self._stream = stream
        key = (x.shape, x.stride(), x.dtype, x.device, *settings)
        if len(self._calls) >= MAX_SIZES_SEEN:
            self._calls = Counter({known: self._calls[known] for known in self._recordings})
        self._calls[key] = min(self._calls[key] + 1, MAX_COUNT)
        recording = self._recordings.get(key)
        if recording is None and self._calls[key] >= RECORDED_AT and self._has_room_for(key):
            recording = self._record(key, owner, function, x)
        return recording

    def _has_room_for(self, key: Any) -> bool:
        """Whether there is, or it is needed more than a recording that makes room."""
        if len(self._recordings) < MAX_GRAPHS:
            return True
        least = min(self._recordings, key=self._calls.__getitem__)
        if self._calls[least] >= self._calls[key]:
            self._calls[least] -= 1
            return False
        del self._recordings[least], self._calls[least]
        return True

    def _record(self, key: Any, owner: nn.Module, function: Network, x: Tensor) -> _Recording | None:
        try:
            with _recording_lock:
                recording = self._recordings[key] = self._recorded(owner, function, x)
        except torch.OutOfMemoryError:
            self.clear()
            torch.cuda.empty_cache()
            return None
        except (RuntimeError, UserWarning) as error:
            self.clear()
            self._enabled = False
            _logger.warning("no CUDA graph can be made of this network, it runs as usual: %s", error)
            return None
        return recording

    def _recorded(self, owner: nn.Module, function: Network, x: Tensor) -> _Recording:
        device_type = x.device.type
        with torch.inference_mode(False):  # so that it may be written to in any mode
            static = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
        graph = torch.cuda.CUDAGraph()
        # What autocast remembers of weights ends with its context, which is before that of the recording.
        dtype, is_enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
        with torch.cuda.device(x.device):
            if self._pool is None:
                self._pool, self._recording_stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            self._recording_stream.wait_stream(torch.cuda.current_stream())
            with (
                torch.cuda.stream(self._recording_stream),
                torch.autocast(device_type, dtype, enabled=is_enabled, cache_enabled=False),
                used_constants() as constants,
                warnings.catch_warnings(),
            ):
                function(static)
                warnings.filterwarnings("error", message=".*CUDA Graph is empty")
                # Other threads may go on: those of data loaders allocate memory.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._recording_stream, capture_error_mode="thread_local"
                ):
                    outputs = function(static)
            torch.cuda.current_stream().wait_stream(self._recording_stream)
        # Prepared weights, and whatever else modules remember beside parameters and buffers.
        remembered = [_copied(vars(module)) for module in owner.modules()]
        return _Recording(static, graph, outputs, [constants, remembered])

    @staticmethod
    def _is_for(x: Tensor) -> bool:
        return x.is_cuda and not torch.cuda.is_current_stream_capturing()

    @staticmethod
    def _current_stream(x: Tensor) -> Any:
        return torch.cuda.current_stream(x.device)


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """The same values, also if dictionaries among them lose theirs."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in attributes.items()}


def _may_be_replayed() -> bool:
    """Whether nobody but the caller looks at what is computed."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or nn.modules.module._has_any_global_hook()
    )


def _state(owner: nn.Module) -> Any:
    """Changes with the weights and the precision; None while recordings would leave something out."""
    state: list[Any] = [
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
    ]
    modules: list[nn.Module | None] = [owner]
    while modules:
        module = modules.pop()
        if module is None:
            continue
        if module.training or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
        modules.extend(module._modules.values())
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    if tensor.is_inference():  # has no version
                        return None
                    state.append((tensor.data_ptr(), tensor._version))
    return state
