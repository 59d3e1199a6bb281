"""Programs of torch.export as machine code, which AOTInductor makes: no Python is left in them."""

from __future__ import annotations

import importlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

__all__ = ["check_compiler", "compile_program", "open_package"]

HOST = "host.json"
OPTIONS = {
    "freezing": True,  # weights are constants, which oneDNN gets in the order it works with
    # `fold_norms` has brought most weights of convolutions into the order of channels_last; where inductor does so for
    # all, it fails at results of free size, whose strides it cannot express.
    "layout_optimization": False,
    "cpp.dynamic_threads": True,  # not as many as the machine has that compiles
}


def check_compiler() -> None:
    """Makes sure that there is what turns C++ into machine code.

    Raises:
        FileNotFoundError: there is not.
    """
    try:
        importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"AOTInductor needs a C++ compiler: install g++, or name one by CXX ({error})"
        ) from error


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Writes a package for CPUs that have all of what this one has, and beside it what that is. Takes minutes."""
    inductor: Any = importlib.import_module("torch._inductor")
    fresh_cache: Any = importlib.import_module("torch._inductor.utils").fresh_cache
    # What inductor caches for the next time has the weights in it.
    with torch.no_grad(), fresh_cache(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(OPTIONS))
    path.with_name(HOST).write_text(json.dumps(_host(), indent=1))


def open_package(path: Path, device: str) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """What runs the package; several threads may, at the same time.

    Raises:
        ValueError: the package was compiled for another kind of machine, or cannot be loaded.
    """
    instead = "export it on this machine, or as torch_export"
    if torch.device(device).type != "cpu":
        raise ValueError(
            f"{str(path)!r} was compiled for CPUs, not for device {device!r}: export it as torch_export, or hide the "
            "GPU (CUDA_VISIBLE_DEVICES=)"
        )
    compiled_for, here = json.loads(path.with_name(HOST).read_text()), _host()
    for name, value in compiled_for.items():
        if name != "capabilities" and here[name] != value:
            raise ValueError(f"{str(path)!r} was compiled for {name} {value}, here is {here[name]}: {instead}")
    lacking = sorted(set(compiled_for["capabilities"]) - set(here["capabilities"]))
    if lacking:
        raise ValueError(f"{str(path)!r} was compiled for CPUs with {', '.join(lacking)}, which this lacks: {instead}")
    load: Any = importlib.import_module("torch._inductor.package").load_package
    try:
        # Runners share the weights; a call waits for a free one.
        package = load(str(path), num_runners=os.cpu_count() or 1)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be loaded. The folder of temporary files (TMPDIR) must have room for it and may not "
            f"be mounted noexec; otherwise {instead}: {error}"
        ) from error
    # The code takes memory for laid out as it was when it was made, and does not look.
    return lambda inputs: package(*(tensor.contiguous() for tensor in inputs))


def _host() -> dict[str, Any]:
    """What machine code relies on here: also the functions of torch, which have no versions of their own."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "torch": torch.__version__.split("+")[0],
        "system": platform.system(),
        "architecture": platform.machine(),
        "sve_max_length": capabilities.get("sve_max_length"),  # vectors of ARM, for whose length code is made
        "capabilities": sorted(name for name, value in capabilities.items() if value is True),
    }
