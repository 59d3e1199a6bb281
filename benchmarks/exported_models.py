#!/usr/bin/env python3
"""Times exported models beside the checkpoint they were made from.

    benchmarks/exported_models.py exported/onnx exported/torchscript --config-file configs/digits/panoptic.yaml \\
        --size 96 144 --threads 1 --opts MODEL.WEIGHTS weights/digits_panoptic.safetensors

All of them get the same picture through `mask2former.deploy` and give typed results; they take turns in one process.
Figures are medians with their range; "ratio" is the median over the turns of the checkpoint's time by the exported
model's, above 1 where the exported model is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from mask2former.benchmark import Statistic
from mask2former.config import load_config
from mask2former.deploy import load
from mask2former.deploy.export.parity import parity_picture
from mask2former.deploy.runtime import Segmenter, load_eager

WARM_UP = 2


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    models = {"checkpoint": load_eager(load_config(args.config_file, args.opts))}
    models |= {folder.name: load(folder) for folder in args.folders}
    seconds = measure(models, tuple(args.size), args.repeats)
    print(f"picture of {args.size[0]} x {args.size[1]}, {torch.get_num_threads()} threads, {args.repeats} calls each")
    for name, values in seconds.items():
        figure = Statistic.of([1000 * value for value in values])
        ratio = statistics.median(eager / own for eager, own in zip(seconds["checkpoint"], values, strict=True))
        spread = f"({figure.smallest:.1f} - {figure.largest:.1f})"
        print(f"{name:<24}{figure.median:9.1f} ms {spread:<20} ratio {ratio:.2f}")
    return 0


def measure(models: dict[str, Segmenter], size: tuple[int, int], num_calls: int) -> dict[str, list[float]]:
    """Seconds of every call by model, in the order of the turns."""
    picture = parity_picture(size).permute(1, 2, 0).contiguous().numpy()
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(WARM_UP + num_calls):
        for name, model in models.items():
            start = time.perf_counter()
            model(picture)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of tools/export_model.py")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the checkpoint")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=9, help="calls of each that are timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of PyTorch and ONNX Runtime; default: PyTorch's choice")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
