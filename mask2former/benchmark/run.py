"""Measures both sides in turns."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray

from mask2former.benchmark.meter import Meter, Metering, OwnProcess
from mask2former.benchmark.report import INFERENCE_STAGES, TRAINING_STAGES, Figures, Report
from mask2former.benchmark.workload import Workload

__all__ = ["benchmark"]


def benchmark(
    cfg: CfgNode,
    workload: Workload,
    *,
    repeats: int = 5,
    with_transformers: bool = True,
    own_processes: bool = True,
    progress: Callable[[range], Iterator[int]] = iter,
) -> Report:
    """Measures both sides in turns, after one call of each to warm up.

    Args:
        cfg: both sides have the weights of MODEL.WEIGHTS, or the same random ones where that is empty.
        repeats: timed calls of each side; another one measures memory.
        with_transformers: False measures our side alone.
        own_processes: each side lives in a process of its own, so that what one has allocated cannot count for the
            other. False saves the seconds that their start takes, but memory figures then depend on what was before.
        progress: wraps the repetitions, for a progress bar.

    Raises:
        ValueError: the config, or the device, cannot be measured.
        ChildProcessError: the process of a side was killed.
    """
    if repeats < 1:
        raise ValueError(f"--repeats {repeats} must be at least 1")
    with ExitStack() as stack:

        def opened(*arguments: Any) -> Metering:
            return stack.enter_context(OwnProcess(*arguments)) if own_processes else Meter(*arguments)

        ours = opened(cfg, workload)
        sides = {"ours": ours}
        report = Report(_settings(workload, repeats, ours("device_name")))
        if with_transformers:
            facts = Path(stack.enter_context(TemporaryDirectory())) / "facts.pt"
            ours("save_facts", facts)
            try:
                sides["transformers"] = opened(cfg, workload, facts)
            except (ModuleNotFoundError, ValueError) as error:
                report.why_alone = str(error)
            else:
                report.deviation = _deviation(*(side("outputs") for side in sides.values()))
        calls = _calls(sides, progress(range(repeats)))
        for name, side in sides.items():
            report.sides[name] = Figures.of(
                calls[name],
                stages=TRAINING_STAGES if workload.training else INFERENCE_STAGES,
                batch_size=workload.batch_size,
                memory_mib=side("memory_mib"),
                costs=side("costs"),
            )
    return report


def _calls(sides: dict[str, Metering], repetitions: Iterator[int]) -> dict[str, list[dict[str, float]]]:
    """Seconds of the stages of every call; the first one of each side is not among them."""
    for side in sides.values():
        side("warm_up")
    calls: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repetition in repetitions:
        # Neither side always runs first.
        for name in sorted(sides, reverse=bool(repetition % 2)):
            calls[name].append(sides[name]("seconds"))
    return calls


def _deviation(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> dict[str, float]:
    return {name: float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs}


def _settings(workload: Workload, repeats: int, device: str) -> dict[str, Any]:
    if device == "CPU":
        device = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return {
        **vars(workload),
        "size": list(workload.size),
        "repeats": repeats,
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    """As Linux calls it; elsewhere what Python knows."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
