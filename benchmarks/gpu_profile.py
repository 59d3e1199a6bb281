#!/usr/bin/env python3
"""What a GPU spends its time on in inference or in a training step: matrix products, and what bounds the rest.

    benchmarks/gpu_profile.py --size 800 1333 --precision fp32 bf16
    benchmarks/gpu_profile.py --training --size 1024 1024 --batch-size 4 --precision bf16

For every kind of kernel the time of a call and its share; then how much of the call the GPU was busy (the rest is
waiting for the host, which launches kernels) and the kernels that take longest. The workload is that of
tools/benchmark.py, but a picture of 800x1333 unless told otherwise. Needs a GPU.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from mask2former.benchmark import add_workload_options, check_device, workloads
from mask2former.benchmark.inference import OurInference
from mask2former.benchmark.training import OurTraining
from mask2former.config import load_config

#: Kinds of kernels by what their names contain; the first that fits counts.
KINDS = {
    "deformable attention": r"\b(forward|backward)_kernel\b",
    "attention": r"flash|fmha|attention",
    "matrix products": r"gemm|gemv|cutlass|xmma|nvjet|cudnn|conv|wgrad|dgrad|splitk|implicit",
    "norms": r"norm",
    "softmax": r"softmax",
    "resizing and sampling": r"upsample|grid_sampl|interpolate",
    "copies": r"memcpy|memset|copy|cat_?array|direct_?copy|transpose|nchwtonhwc|nhwctonchw",
    "sorting": r"sort|topk|scan|radix",
    "optimizer": r"multi_tensor|adam",
    "elementwise and reductions": r"elementwise|reduce|fill|index|gather|scatter",
}


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    check_device("cuda")
    cfg = load_config(args.config_file, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cuda", *args.opts])
    for workload in workloads(args):
        side = (OurTraining if workload.training else OurInference)(cfg, workload)
        side.warm_up()
        with side.stopwatch.as_a_whole():
            kernels, milliseconds = profiled(side, args.calls)
        what = "training step" if workload.training else "inference"
        height, width = workload.size
        print(f"\n{what}, {height}x{width}, batch {workload.batch_size}, {workload.precision}")
        report(kernels, milliseconds, args.top)
    return 0


def profiled(side: OurInference | OurTraining, calls: int) -> tuple[Counter[str], float]:
    """Milliseconds of every kernel in one call, and those that a call takes without the profiler."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        side.run()
    torch.cuda.synchronize()
    milliseconds = 1000 * (time.perf_counter() - start) / calls
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(calls):
            side.run()
        torch.cuda.synchronize()
    kernels: Counter[str] = Counter()
    for event in recorded.events():
        if event.device_type.name == "CUDA":
            kernels[event.name] += event.self_device_time_total / 1000 / calls
    return kernels, milliseconds


def report(kernels: Counter[str], milliseconds: float, top: int) -> None:
    kinds: Counter[str] = Counter()
    for name, value in kernels.items():
        kinds[kind_of(name)] += value
    busy = sum(kinds.values())
    for kind, value in kinds.most_common():
        print(f"  {kind:<28}{value:9.3f} ms {100 * value / busy:6.1f} %")
    print(f"  all kernels {busy:.3f} ms of {milliseconds:.3f} ms: the GPU is busy {100 * busy / milliseconds:.0f} %")
    for name, value in kernels.most_common(top):
        print(f"    {value:9.3f} ms  {kind_of(name)}: {name[:140]}")


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_options(parser)
    parser.set_defaults(size=(800, 1333))
    parser.add_argument("--calls", type=int, default=5, metavar="N", help="profiled calls (default: %(default)s)")
    parser.add_argument("--top", type=int, default=12, metavar="N", help="kernels listed (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"gpu_profile.py: error: {error}")
