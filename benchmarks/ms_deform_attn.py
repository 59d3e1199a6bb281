#!/usr/bin/env python3
"""Times every backend of multi-scale deformable attention beside the plain PyTorch one, as an encoder layer calls it.

    benchmarks/ms_deform_attn.py --threads 2

The default is one picture of 800 x 1333 pixels: levels of stride 32, 16 and 8, whose tokens all are queries, 8 heads of
32 channels, 4 points. Figures are medians over the repetitions with their range; the backends take turns. Let nothing
else run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import torch
from torch import Tensor

from mask2former.benchmark import Statistic
from mask2former.modeling.pixel_decoder.msdeformattn import cell_centers
from mask2former.modeling.pixel_decoder.ops.backends import REFERENCE, VARIABLE, available_backends, forget_choices
from mask2former.modeling.pixel_decoder.ops.functional import fused_ms_deform_attn

Sizes = tuple[tuple[int, int], ...]


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    height, width = args.size
    sizes = tuple((-(-height // stride), -(-width // stride)) for stride in (32, 16, 8))
    inputs = make_inputs(sizes, args.batch_size, torch.device(args.device), getattr(torch, args.dtype))
    names = [REFERENCE, *(name for name in args.backends or available_backends() if name != REFERENCE)]
    print(f"levels {sizes}, batch {args.batch_size}, {args.dtype} on {args.device}, {torch.get_num_threads()} threads")
    for title, with_backward in (("forward", False), ("forward + backward", True)):
        seconds = measure(names, inputs, sizes, with_backward, args.repeats)
        for name in names:
            figure = Statistic.of([1000 * second for second in seconds[name]])
            ratio = Statistic.of(seconds[REFERENCE]).median / Statistic.of(seconds[name]).median
            spread = f"({figure.smallest:.1f} - {figure.largest:.1f})"
            print(f"{title:<20}{name:<12}{figure.median:9.1f} ms {spread:<22}{ratio:7.2f} x")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument(
        "--dtype", choices=["float32", "float64", "float16", "bfloat16"], default="float32", help="value"
    )
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that are available")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    return parser.parse_args(arguments)


def make_inputs(sizes: Sizes, batch: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Value, reference points, offsets of a few cells, logits."""
    torch.manual_seed(0)
    num_tokens = sum(height * width for height, width in sizes)
    centers_1SL2 = cell_centers(sizes, torch.float32, device)[None, :, None].expand(-1, -1, len(sizes), -1)
    return [
        torch.randn(batch, num_tokens, 8, 32, device=device).to(dtype),
        centers_1SL2,
        2 * torch.randn(batch, num_tokens, 8, len(sizes), 4, 2, device=device),
        torch.randn(batch, num_tokens, 8, len(sizes), 4, device=device),
    ]


def measure(
    names: list[str], inputs: list[Tensor], sizes: Sizes, with_backward: bool, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every repetition, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    value, reference, offsets, logits = inputs
    trained = [tensor.detach().requires_grad_(with_backward) for tensor in (value, offsets, logits)]
    grad_output = torch.randn_like(value.flatten(2))
    for repetition in range(-1, repeats):
        for name in names:
            os.environ[VARIABLE] = name
            forget_choices()
            synchronize(value.device)
            start = time.perf_counter()
            output = fused_ms_deform_attn(trained[0], sizes, reference, *trained[1:])
            if with_backward:
                torch.autograd.grad(output, trained, grad_output)
            synchronize(value.device)
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
