#!/usr/bin/env python3
"""Times post-processing, and measures its memory, beside the straightforward form.

    benchmarks/postprocessing.py --size 512 704 --threads 2
    benchmarks/postprocessing.py --size 800 1000 --output 4000 5000 --queries 200 --semantic labels --alone

The straightforward form resizes the masks of all queries to the output and applies the published rules to them. Both
get the same made-up predictions: smooth masks, and classes so that a fifth of the queries may own panoptic segments.
Figures are medians over the repetitions with their range; the sides take turns. Where other programs share the machine,
the processor time of one thread (--threads 1) says more than the time that passed. Memory is the most that a call
needed beside what was there before it, its results included.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.benchmark import Statistic
from mask2former.modeling.masks import MaskLogits
from mask2former.modeling.postprocessing import (
    INSTANCE_OUTPUTS,
    SEMANTIC_RESULTS,
    MaskSizes,
    ResultSettings,
    image_results,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)

NUM_THINGS = 80
TASKS = ("semantic", "panoptic", "instance")


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    output = tuple(args.output or args.size)
    sizes = MaskSizes(tuple(-(-side // 32) * 32 for side in args.size), tuple(args.size), output)
    class_logits, masks = predictions(args.queries, args.classes, sizes)
    settings = ResultSettings(
        semantic_output=args.semantic if "semantic" in args.tasks else None,
        instance_output=args.instances if "instance" in args.tasks else None,
        panoptic_on="panoptic" in args.tasks,
        resize_first=True,
        thing_ids=range(NUM_THINGS),
        object_mask_threshold=0.8,
        overlap_threshold=0.8,
        topk=100,
        memory_budget=int(args.budget * 2**20),
    )
    sides: dict[str, Callable[[], Any]] = {
        "blocks": lambda: image_results(
            class_logits, lambda queries: masks.select(0, queries).squeeze(1), sizes, settings
        )
    }
    if not args.alone:
        sides["straightforward"] = lambda: straightforward(class_logits, masks, sizes, settings)
    print(f"{args.queries} queries, {sizes}, budget {args.budget} MiB, {torch.get_num_threads()} threads")
    for name, figures in measure(sides, args.repeats).items():
        columns = [f"{figure.median:8.0f} ({figure.smallest:.0f} - {figure.largest:.0f})" for figure in figures]
        print(f"{name:<17}{columns[0]:<24} ms {columns[1]:<24} ms of processor time {columns[2]:<22} MiB")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 704), metavar=("HEIGHT", "WIDTH"), help="picture")
    parser.add_argument("--output", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: that of the picture")
    parser.add_argument("--queries", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--classes", type=int, default=133, metavar="N", help="default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    parser.add_argument("--semantic", choices=list(SEMANTIC_RESULTS), default="scores", help="default: %(default)s")
    parser.add_argument("--instances", choices=INSTANCE_OUTPUTS, default="masks", help="default: %(default)s")
    parser.add_argument("--budget", type=float, default=256, metavar="MIB", help="default: %(default)s")
    parser.add_argument("--alone", action="store_true", help="leave the straightforward form out")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    return parser.parse_args(arguments)


def predictions(num_queries: int, num_classes: int, sizes: MaskSizes) -> tuple[Tensor, MaskLogits]:
    """(Q, K + 1) class logits and the masks of one picture."""
    torch.manual_seed(0)
    height, width = (side // 4 for side in sizes.padded)
    coarse = torch.randn(1, 256, max(1, height // 16), max(1, width // 16))
    features = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    class_logits = torch.randn(num_queries, num_classes + 1)
    best = torch.randint(0, num_classes, (num_queries // 5,))
    class_logits[torch.arange(len(best)), best] += 12
    return class_logits, MaskLogits(torch.randn(1, num_queries, 256), features.unsqueeze(1))


def straightforward(
    class_logits: Tensor, masks: MaskLogits, sizes: MaskSizes, settings: ResultSettings
) -> dict[str, Any]:
    logits = masks.dense()[:, :, 0]
    logits = F.interpolate(logits, size=sizes.padded, mode="bilinear", align_corners=False)
    logits = logits[:, :, : sizes.image[0], : sizes.image[1]]
    logits = F.interpolate(logits, size=sizes.output, mode="bilinear", align_corners=False)[0]
    results: dict[str, Any] = {}
    if settings.semantic_output is not None:
        results["sem_seg"] = semantic_inference(class_logits, logits)
    if settings.panoptic_on:
        results["panoptic_seg"] = panoptic_inference(
            class_logits,
            logits,
            thing_ids=settings.thing_ids,
            object_mask_threshold=settings.object_mask_threshold,
            overlap_threshold=settings.overlap_threshold,
        )
    if settings.instance_output is not None:
        results["instances"] = instance_inference(
            class_logits, logits, topk=settings.topk, thing_ids=settings.thing_ids
        )
    return results


@torch.inference_mode()
def measure(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Statistic]]:
    """Milliseconds, milliseconds of processor time and MiB of every side, after one call that does not count."""
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for repetition in range(-1, repeats):
        for name, call in sides.items():
            before = forget_peak()
            start, processor_start = time.perf_counter(), time.process_time()
            call()
            processor_time, passed = time.process_time() - processor_start, time.perf_counter() - start
            if repetition >= 0:
                figures[name].append((1000 * passed, 1000 * processor_time, process_mebibytes("VmHWM") - before))
    return {name: [Statistic.of(list(column)) for column in zip(*rows, strict=True)] for name, rows in figures.items()}


def forget_peak() -> float:
    """MiB of the process now (Linux), from which its peak is counted."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before shall not serve the next call unseen
    Path("/proc/self/clear_refs").write_text("5")
    return process_mebibytes("VmRSS")


def process_mebibytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 2**10


if __name__ == "__main__":
    sys.exit(main())
