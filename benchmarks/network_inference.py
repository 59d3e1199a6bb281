#!/usr/bin/env python3
"""CPU time of the network's stages in inference: with the layers of `modeling.inference_layers`, without, transformers.

    benchmarks/network_inference.py --threads 1

One picture of 512 x 704 through COCO panoptic R50 with random weights, the same on all sides, which take turns. Figures
are milliseconds of processor time, which other programs on the machine disturb less than the time on the clock (--wall
takes that); medians over the repetitions with their range.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mask2former import MaskFormer
from mask2former.benchmark.sides import transformers_model
from mask2former.config import load_config
from mask2former.modeling import inference_layers
from mask2former.modeling.backbone.windows import WindowAttention

DEFAULT_CONFIG = "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
STAGES = ("backbone", "pixel decoder", "decoder")
Clock = Callable[[], float]


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.wall else time.process_time
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    torch.manual_seed(0)
    ours = MaskFormer(cfg).eval()
    theirs = transformers_model(cfg, ours.state_dict())
    pixels = torch.randn(1, 3, *args.size)
    print(f"{args.size[0]}x{args.size[1]}, {torch.get_num_threads()} threads, {'wall' if args.wall else 'CPU'} ms")
    for dtype in (None, torch.bfloat16):
        sides: dict[str, Callable[[], list[float]]] = {
            "ours": lambda: run_ours(ours, pixels, clock, plain=False),
            "ours, plain layers": lambda: run_ours(ours, pixels, clock, plain=True),
            "transformers": lambda: run_theirs(theirs, pixels, clock),
        }
        times = measure(sides, dtype, args.repeats)
        for name, rows in times.items():
            columns = [*zip(*rows, strict=True), [sum(row) for row in rows]]
            cells = [f"{stage} {figure(column)}" for stage, column in zip((*STAGES, "network"), columns, strict=True)]
            print(f"{'fp32' if dtype is None else 'bf16'}  {name:<18}  {'  '.join(cells)}", flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=DEFAULT_CONFIG)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 704), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--wall", action="store_true", help="time on the clock instead of processor time")
    return parser.parse_args(arguments)


@torch.inference_mode()
def measure(
    sides: dict[str, Callable[[], list[float]]], dtype: torch.dtype | None, repeats: int
) -> dict[str, list[list[float]]]:
    """Milliseconds of every stage, one row per repetition; a first one is left out."""
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    with nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype):
        for repetition in range(repeats + 1):
            for name, side in sides.items():
                row = side()
                times[name] += [row] if repetition else []
    return times


def run_ours(model: MaskFormer, pixels: Tensor, clock: Clock, *, plain: bool) -> list[float]:
    """Plain: every layer as PyTorch and Detectron2 have it, in the memory format of the picture."""
    with ExitStack() as stack:
        if plain:
            stack.enter_context(mock.patch.object(inference_layers, "_inference_dtype", return_value=None))
            unfused = WindowAttention._attend_with_gradients
            stack.enter_context(mock.patch.object(WindowAttention, "_attend", unfused))
        else:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        times = [clock()]
        features = model.backbone(pixels)
        times.append(clock())
        decoded = model.sem_seg_head.pixel_decoder.forward_features(features)
        times.append(clock())
        model.sem_seg_head.predictor(decoded[2], decoded[0])
        times.append(clock())
    return [1000 * (after - before) for before, after in zip(times, times[1:], strict=False)]


def run_theirs(model: Any, pixels: Tensor, clock: Clock) -> list[float]:
    times: list[float] = []
    modules = model.model.pixel_level_module.encoder, model.model.pixel_level_module.decoder
    hooks = [module.register_forward_hook(lambda *_: times.append(clock())) for module in modules]
    start = clock()
    model(pixel_values=pixels)
    times = [start, *times, clock()]
    for hook in hooks:
        hook.remove()
    return [1000 * (after - before) for before, after in zip(times, times[1:], strict=False)]


def figure(values: Any) -> str:
    return f"{median(values):.0f} ({min(values):.0f} - {max(values):.0f})"


if __name__ == "__main__":
    main()
