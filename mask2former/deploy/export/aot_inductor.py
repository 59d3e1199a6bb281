"""Programs of torch.export as machine code, which AOTInductor makes: no Python is left in them."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

__all__ = ["compile_program", "compiler", "open_package"]

PROCESSOR = "processor.json"
OPTIONS = {
    "freezing": True,  # weights are constants, which oneDNN gets in the order it works with
    # Weights of convolutions have the order of channels_last already, see `fold_norms`; inductor's own choice of it
    # cannot express the strides of results of free size.
    "layout_optimization": False,
    "cpp.dynamic_threads": True,  # not as many as the machine has that compiles
}


def compiler() -> str:
    """Of C++, as inductor looks for it."""
    return os.environ.get("CXX", "g++")


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Writes a package for CPUs that have all of what this one has, and beside it what that is.

    Takes minutes.

    Raises:
        FileNotFoundError: there is no C++ compiler.
    """
    if shutil.which(compiler()) is None:
        raise FileNotFoundError(
            f"AOTInductor needs a C++ compiler, and there is no {compiler()!r}: install one, or name another by CXX"
        )
    inductor: Any = importlib.import_module("torch._inductor")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=OPTIONS)
    path.with_name(PROCESSOR).write_text(json.dumps(_processor(), indent=1))


def open_package(path: Path, device: str) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """What runs the package; several threads may, at the same time.

    Raises:
        ValueError: the package was compiled for another processor.
    """
    if torch.device(device).type != "cpu":
        raise ValueError(f"{str(path)!r} was compiled for CPUs, not for device {device!r}: export it as torch_export")
    compiled_for, here = json.loads(path.with_name(PROCESSOR).read_text()), _processor()
    lacking = sorted(set(compiled_for["capabilities"]) - set(here["capabilities"]))
    kinds = [f"{kind['system']} on {kind['architecture']}" for kind in (compiled_for, here)]
    if lacking or kinds[0] != kinds[1]:
        what = f"{kinds[0]}, this is {kinds[1]}" if kinds[0] != kinds[1] else f"a CPU with {', '.join(lacking)}"
        raise ValueError(f"{str(path)!r} was compiled for {what}: export it on this machine, or as torch_export")
    load: Any = importlib.import_module("torch._inductor.package").load_package
    # Runners share the weights; a call waits for a free one.
    runners = {"num_runners": os.cpu_count() or 1} if "num_runners" in inspect.signature(load).parameters else {}
    package = load(str(path), **runners)
    return lambda inputs: package(*inputs)


def _processor() -> dict[str, Any]:
    """What machine code may rely on here."""
    capabilities = [name for name, value in torch.cpu.get_capabilities().items() if value is True]
    return {"system": platform.system(), "architecture": platform.machine(), "capabilities": sorted(capabilities)}
