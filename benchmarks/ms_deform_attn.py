#!/usr/bin/env python3
"""Times every backend of multi-scale deformable attention beside the plain PyTorch one, as an encoder layer calls it.

    benchmarks/ms_deform_attn.py --threads 2
    benchmarks/ms_deform_attn.py --device cuda --sizes 800x1333 1024x1024 --batch-sizes 1 16 --dtypes float32 bfloat16

The default is one picture of 800 x 1333 pixels: levels of stride 32, 16 and 8, whose tokens all are queries, 8 heads of
32 channels, 4 points. Figures are medians over the repetitions with their range; the backends take turns. The bound is
the time in which the device copies as many bytes as the operator must read and write at least: every tensor once. Let
nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time

import torch
from torch import Tensor

from mask2former.benchmark import Statistic
from mask2former.modeling.pixel_decoder.msdeformattn import cell_centers
from mask2former.modeling.pixel_decoder.ops.backends import (
    PLAIN,
    REFERENCE,
    VARIABLE,
    available_backends,
    backend,
    chosen_backend,
    forget_choices,
)
from mask2former.modeling.pixel_decoder.ops.functional import fused_ms_deform_attn

Sizes = tuple[tuple[int, int], ...]


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    name_of_device = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.device}"
    bandwidth = copy_bandwidth(device)
    print(f"{name_of_device}, torch {torch.__version__}, {torch.get_num_threads()} threads on the CPU")
    print(f"copies {bandwidth / 1e9:.0f} GB/s (read and written bytes together)")
    names = [REFERENCE, *(name for name in args.backends or available_backends() if name != REFERENCE)]
    names = [name for name in names if name in PLAIN or device.type in backend(name).device_types]
    for size, batch, dtype in itertools.product(args.sizes, args.batch_sizes, args.dtypes):
        sizes = tuple((-(-size[0] // stride), -(-size[1] // stride)) for stride in (32, 16, 8))
        inputs = make_inputs(sizes, batch, device, getattr(torch, dtype))
        print(f"\n{size[0]} x {size[1]}, levels {sizes}, batch {batch}, {dtype}")
        for title, with_backward in (("forward", False), ("forward + backward", True)):
            bound = least_bytes(inputs, with_backward) / bandwidth
            report(title, measure(names, inputs, sizes, with_backward, args.repeats), bound)
    return 0


def report(title: str, seconds: dict[str, list[float]], bound: float) -> None:
    """A line for every backend: how it compares with the reference and with the bound, in seconds."""
    for name, values in seconds.items():
        figure = Statistic.of([1000 * second for second in values])
        ratio = Statistic.of(seconds[REFERENCE]).median / Statistic.of(values).median
        spread = f"({figure.smallest:.2f} - {figure.largest:.2f})"
        of_bound = figure.median / (1000 * bound)
        print(
            f"{title:<20}{name:<14}{figure.median:9.2f} ms {spread:<22}{ratio:7.2f} x reference {of_bound:7.1f} x bound"
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dtypes = ["float32", "float64", "float16", "bfloat16"]
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[(800, 1333)], metavar="HEIGHTxWIDTH")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=["float32"], help="of value, offsets and logits")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that run on the device")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    return parser.parse_args(arguments)


def size_of(text: str) -> tuple[int, int]:
    height, width = (int(side) for side in text.split("x"))
    return height, width


def make_inputs(sizes: Sizes, batch: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Value, reference points, offsets of a few cells, logits."""
    torch.manual_seed(0)
    num_tokens = sum(height * width for height, width in sizes)
    centers_1SL2 = cell_centers(sizes, torch.float32, device)[None, :, None].expand(-1, -1, len(sizes), -1)
    return [
        torch.randn(batch, num_tokens, 8, 32, device=device).to(dtype),
        centers_1SL2,
        (2 * torch.randn(batch, num_tokens, 8, len(sizes), 4, 2, device=device)).to(dtype),
        torch.randn(batch, num_tokens, 8, len(sizes), 4, device=device).to(dtype),
    ]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy of a large tensor reads and writes."""
    source = torch.zeros(64 * 2**20, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / sorted(seconds)[len(seconds) // 2]


def least_bytes(inputs: list[Tensor], with_backward: bool) -> int:
    """Inputs read and output written once; backward reads them and the output's gradient and writes three gradients."""
    value, reference, offsets, logits = inputs
    read = value.nbytes + reference.untyped_storage().nbytes() + offsets.nbytes + logits.nbytes
    forward = read + value.nbytes
    return forward + read + value.nbytes + value.nbytes + offsets.nbytes + logits.nbytes if with_backward else forward


def measure(
    names: list[str], inputs: list[Tensor], sizes: Sizes, with_backward: bool, repeats: int
) -> dict[str, list[float]]:
    """Seconds of a call in every repetition, after one repetition that does not count.

    A GPU gets 20 calls in a row, as from a network: one alone would be waiting for Python.
    """
    calls = 20 if inputs[0].device.type == "cuda" else 1
    seconds: dict[str, list[float]] = {name: [] for name in names}
    value, reference, offsets, logits = inputs
    trained = [tensor.detach().requires_grad_(with_backward) for tensor in (value, offsets, logits)]
    grad_output = torch.randn_like(value.flatten(2))
    for repetition in range(-1, repeats):
        for name in names:
            os.environ[VARIABLE] = name
            forget_choices()
            chosen_backend(value.device.type)  # outside of what is timed
            synchronize(value.device)
            start = time.perf_counter()
            for _ in range(calls):
                output = fused_ms_deform_attn(trained[0], sizes, reference, *trained[1:])
                if with_backward:
                    torch.autograd.grad(output, trained, grad_output)
            synchronize(value.device)
            if repetition >= 0:
                seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
