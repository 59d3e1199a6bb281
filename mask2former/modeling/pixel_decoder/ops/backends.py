"""What can run multi-scale deformable attention here, and which of it does. Nothing else decides this."""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .sources import fingerprint

__all__ = [
    "EMBEDDING_BAG",
    "PLAIN",
    "REFERENCE",
    "VARIABLE",
    "Backend",
    "available_backends",
    "backend",
    "chosen_backend",
    "forget_choices",
    "takes_narrow_points",
    "takes_value",
]

#: Environment variable that forces one backend. Read when the operator first runs on a type of device.
VARIABLE = "M2F_OPS_BACKEND"
#: Plain PyTorch, on every device. These are no `Backend`s, as autograd differentiates them.
REFERENCE = "reference"
EMBEDDING_BAG = "embedding_bag"  # on CPUs faster without gradients
PLAIN = (REFERENCE, EMBEDDING_BAG)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """An implementation of the operator. In all functions sizes are h0, w0, h1, w1...

    Locations, offsets, weights, logits and reference points are float64 where the value is, otherwise float32.

    Attributes:
        device_types: where it runs.
        value_dtypes: what it takes; others are computed in float32.
        takes_narrow_points: whether locations or offsets and weights or logits may have the dtype of a half-precision
            value, too; so have their gradients, then.
        forward: value (B, S, n, d), sizes, locations (B, T, n, L, K, 2), weights (B, T, n, L, K) -> (B, T, n * d).
        backward: gradient of the output, then as forward -> gradients of value, locations and weights.
        fused_forward: value, sizes, reference points (B or 1, T, L, 2), offsets (B, T, n, L, K, 2), logits
            (B, T, n, L, K) -> (B, T, n * d).
        fused_backward: gradient of the output, then as fused_forward, and whether the gradient of the reference points
            is wanted -> gradients of the four tensors; that of the reference points is empty where it is not wanted.
    """

    name: str
    device_types: frozenset[str]
    value_dtypes: frozenset[torch.dtype]
    takes_narrow_points: bool
    forward: Callable[[Tensor, list[int], Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, list[int], Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    fused_forward: Callable[[Tensor, list[int], Tensor, Tensor, Tensor], Tensor]
    fused_backward: Callable[
        [Tensor, Tensor, list[int], Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor, Tensor]
    ]


def available_backends() -> list[str]:
    """Names of the implementations that can run here, the preferred one first."""
    return [*(name for name in _LOADERS if isinstance(_load(name), Backend)), *PLAIN]


def backend(name: str) -> Backend:
    """The backend of that name, none of `PLAIN`.

    Raises:
        ValueError: there is none, or it cannot run here; the message says why.
    """
    loaded = _load(name) if name in _LOADERS else "there is no such backend"
    if isinstance(loaded, Backend):
        return loaded
    others = {other: _load(other) for other in _LOADERS if other != name}
    missing = [f"; {other} is not ({reason})" for other, reason in others.items() if isinstance(reason, str)]
    raise ValueError(
        f"{VARIABLE}={name} cannot be used: {loaded}. Available here: {', '.join(available_backends())}"
        f"{''.join(missing)}"
    )


@torch.compiler.assume_constant_result
def chosen_backend(device_type: str) -> str:
    """Name of what runs on "cpu", "cuda"...: what M2F_OPS_BACKEND says, otherwise the best that is available.

    Raises:
        ValueError: M2F_OPS_BACKEND names something that is unknown or cannot run here.
    """
    return _choose(device_type)


@torch.compiler.assume_constant_result
def takes_value(name: str, dtype: torch.dtype) -> bool:
    """Whether the backend of that name reads values of a dtype as they are."""
    return dtype in backend(name).value_dtypes


@torch.compiler.assume_constant_result
def takes_narrow_points(name: str) -> bool:
    """`Backend.takes_narrow_points` of the backend of that name."""
    return backend(name).takes_narrow_points


def forget_choices() -> None:
    """Decide anew when the operator runs next: for programs, and tests, that change M2F_OPS_BACKEND."""
    _choose.cache_clear()
    _load.cache_clear()


@cache
def _choose(device_type: str) -> str:
    if device_type == "meta":  # tensors without content: plain PyTorch computes their shapes
        return REFERENCE
    name = os.environ.get(VARIABLE) or _preferred(device_type)
    if name not in PLAIN and device_type not in backend(name).device_types:
        raise ValueError(
            f"{VARIABLE}={name} runs on {', '.join(sorted(backend(name).device_types))}, the tensors are on "
            f"{device_type}. Unset it, or move the model"
        )
    _logger.info("multi-scale deformable attention on %s: %s", device_type, name)
    return name


def _preferred(device_type: str) -> str:
    loaded = [_load(name) for name in _LOADERS]
    usable = (found for found in loaded if isinstance(found, Backend) and device_type in found.device_types)
    return next((found.name for found in usable), REFERENCE)


@cache
def _load(name: str) -> Backend | str:
    """The backend, or why it cannot run here."""
    return _LOADERS[name]()


def _load_cpp() -> Backend | str:
    reason = _load_library("_C.so", "mask2former_cpp", "a C++ compiler")
    if reason:
        return reason
    operators = torch.ops.mask2former_cpp
    return Backend(
        "cpp",
        frozenset({"cpu"}),
        frozenset({torch.float32, torch.float64, torch.bfloat16}),
        False,
        operators.forward,
        operators.backward,
        operators.fused_forward,
        operators.fused_backward,
    )


def _load_cuda() -> Backend | str:
    if not torch.cuda.is_available():
        return "there is no GPU"
    reason = _load_library("_C_cuda.so", "mask2former_cuda", "nvcc")
    if reason:
        return reason
    functions = importlib.import_module(".cuda_library", __package__)
    return Backend("cuda", frozenset({"cuda"}), _GPU_DTYPES, True, *(getattr(functions, name) for name in _FUNCTIONS))


def _load_library(file_name: str, namespace: str, compiler: str) -> str:
    """Load a compiled library; why that is not possible, "" if it is."""
    library = Path(__file__).with_name(file_name)
    if not library.is_file():
        return f"the package was installed without {compiler} or with M2F_BUILD_OPS=0"
    rebuild = "build it again with `make setup` or `pip install --no-build-isolation .`"
    try:
        torch.ops.load_library(library)
    except OSError as error:  # the linker's answer to a library of another torch or machine
        reason = f"{library} cannot be loaded, {rebuild}: {error}"
    else:
        operators = getattr(torch.ops, namespace)
        built_for = operators.built_for()
        # The library knows major.minor.patch; torch adds the build (+cu130) or the day (.dev...) to it.
        if not re.match(rf"{re.escape(built_for)}(?!\d)", torch.__version__):
            reason = f"{library} was built for torch {built_for}, this is {torch.__version__}: {rebuild}"
        elif operators.built_from() != fingerprint():
            reason = f"{library} was built from other sources than those beside it: {rebuild}"
        else:
            return ""
    _logger.warning("The fast multi-scale deformable attention is not used: %s", reason)
    return reason


def _load_triton() -> Backend | str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (torch.cuda.is_available() or interpreted):
        return "there is no GPU"
    functions = importlib.import_module(".triton_kernels", __package__)
    # The interpreter, for tests, computes on the host.
    device_types = frozenset({"cuda", "cpu"} if interpreted else {"cuda"})
    return Backend("triton", device_types, _GPU_DTYPES, True, *(getattr(functions, name) for name in _FUNCTIONS))


_GPU_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
#: What a module of kernels calls the functions of a `Backend`, in their order there.
_FUNCTIONS = ("forward", "backward", "fused_forward", "fused_backward")
#: The preferred first.
_LOADERS: dict[str, Callable[[], Backend | str]] = {"cpp": _load_cpp, "cuda": _load_cuda, "triton": _load_triton}
