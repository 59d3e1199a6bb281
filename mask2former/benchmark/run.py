"""Measures both sides in turns."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray

from mask2former.benchmark.report import STAGES, Report, Statistic
from mask2former.benchmark.sides import OurSide, Pictures, Side, TransformersSide

__all__ = ["benchmark"]


def benchmark(
    cfg: CfgNode,
    *,
    size: tuple[int, int],
    batch_size: int = 1,
    repeats: int = 5,
    kept_queries: int = 20,
    with_transformers: bool = True,
    progress: Callable[[range], Iterator[int]] = iter,
) -> Report:
    """Measures both sides in turns, after one call of each to warm up.

    Args:
        cfg: MODEL.WEIGHTS is read for our side alone; beside transformers both have the same random weights.
        size: (height, width) of the pictures.
        repeats: measured calls of each side.
        kept_queries: the panoptic merge gets this many queries, as from a trained model; untrained it would get none.
        with_transformers: False measures our side alone.
        progress: wraps the repetitions, for a progress bar.
    """
    torch.manual_seed(0)
    ours = OurSide(cfg)
    sides: dict[str, Side] = {"ours": ours}
    report = Report(_settings(ours.device, size, batch_size, repeats, kept_queries))
    if with_transformers:
        try:
            theirs = TransformersSide(cfg, ours)
        except (ModuleNotFoundError, ValueError) as error:
            report.why_alone = str(error)
        else:
            sides["transformers"] = theirs
    pictures = [_picture(size, seed) for seed in range(batch_size)]
    _keep_queries(ours, pictures, kept_queries)
    for side in sides.values():
        side(pictures)
    if len(sides) == 2:
        report.deviation = _deviation(ours.logits(pictures), theirs.logits(pictures))

    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    memory: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in progress(range(repeats)):
        # Neither side always runs first.
        for name in sorted(sides, reverse=bool(repetition % 2)):
            peak = _measure(sides[name], pictures, seconds[name])
            memory[name] += [] if peak is None else [peak]
    for name, stages in seconds.items():
        report.milliseconds[name] = {stage: Statistic.of([1000 * value for value in stages[stage]]) for stage in STAGES}
        if memory[name]:
            report.memory_mib[name] = Statistic.of(memory[name])
    return report


def _measure(side: Side, pictures: Pictures, seconds: dict[str, list[float]]) -> float | None:
    """One call: appends the seconds of each stage; returns the memory that it needed in MiB, None if unknown."""
    watch = side.stopwatch
    watch.seconds = {}
    read_peak = _start_memory(side.device)
    total = None
    if side.device.type == "cuda":
        watch.times_stages = False
        side(pictures)
        total = watch.seconds.pop("total")
        watch.times_stages = True
    side(pictures)
    peak = read_peak()
    if total is not None:
        watch.seconds["total"] = total
    for stage in STAGES:
        seconds.setdefault(stage, []).append(watch.seconds[stage])
    return peak


def _start_memory(device: torch.device) -> Callable[[], float | None]:
    """Begins to watch the largest memory; the function that it returns says how far it has risen since, in MiB."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return lambda: (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not sys.platform.startswith("linux"):
        return lambda: None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before shall not serve this call unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak
    except OSError:
        return lambda: None
    before_kib = _process_kib("VmRSS")
    return lambda: (_process_kib("VmHWM") - before_kib) / 2**10


def _process_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _keep_queries(ours: OurSide, pictures: Pictures, count: int) -> None:
    """Sets the panoptic threshold so that `count` queries of the first picture pass."""
    probabilities_QK = ours.logits(pictures[:1])["class"][0].float().softmax(dim=-1)
    scores, labels = probabilities_QK.max(dim=-1)
    ranked = scores[labels != probabilities_QK.shape[1] - 1].sort(descending=True).values.tolist()
    ours.model.object_mask_threshold = ranked[count] if count < len(ranked) else 0.0


def _deviation(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        kind: ((ours[kind] - theirs[kind]).abs().max() / theirs[kind].abs().max()).item() for kind in ("class", "mask")
    }


def _picture(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Smooth blobs with noise on top: neither constant nor pure noise."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 9, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0]
    noisy = (255 * (smooth + 0.05 * torch.randn(smooth.shape, generator=random))).clamp(0, 255)
    return noisy.byte().permute(1, 2, 0).contiguous().numpy()


def _settings(
    device: torch.device, size: tuple[int, int], batch_size: int, repeats: int, kept_queries: int
) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "size": list(size),
        "batch_size": batch_size,
        "repeats": repeats,
        "kept_queries": kept_queries,
    }
