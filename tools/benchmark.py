#!/usr/bin/env python3
"""Where time and memory go in inference or in a training step, beside transformers' Mask2Former on the same weights.

    tools/benchmark.py --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml --size 512 704
    tools/benchmark.py --training --size 384 384 --batch-size 2 --targets 20 200 --chart training.png

A table for every combination of the values of --batch-size, --precision and --targets. Figures are medians over the
repetitions with their range; the two sides take turns. Let nothing else run meanwhile. Weights are random, unless
--opts names some: MODEL.WEIGHTS FILE. A model that transformers does not have is measured alone, with the reason.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from mask2former.benchmark import (
    Report,
    add_workload_options,
    benchmark,
    check_chart_file,
    check_device,
    report_table,
    save_chart,
    workloads,
)
from mask2former.config import load_config


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    logging.basicConfig(level=logging.WARNING)
    if args.threads:
        torch.set_num_threads(args.threads)
    overrides = ["MODEL.WEIGHTS", "", *(["MODEL.DEVICE", args.device] if args.device else [])]
    cfg = load_config(args.config_file, [*overrides, *args.opts])
    reports: list[Report] = []
    for workload in workloads(args, processor_time=args.processor_time):
        report = benchmark(
            cfg, workload, repeats=args.repeats, with_transformers=not args.alone, progress=show_progress
        )
        print("  ".join(f"{name}: {value}" for name, value in report.settings.items()))
        print(report_table(report) + "\n", flush=True)
        reports.append(report)
    if args.json:
        figures = [report.as_dict() for report in reports]
        content = {"config_file": args.config_file, "opts": args.opts, "reports": figures}
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n")
    if args.chart:
        height, width = args.size
        device = reports[0].settings["device"]
        save_chart(reports, args.chart, f"{Path(args.config_file).stem}, {height}x{width}\n{device}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_options(parser)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--processor-time", action="store_true", help="time of all threads on the CPU, for a machine that is not quiet"
    )
    parser.add_argument("--device", help="cpu or cuda (default: the config's; CPU where there is no GPU)")
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--chart", metavar="FILE.png", help="draw the stages as bars")
    args = parser.parse_args(arguments)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """What would fail after minutes of work is said now."""
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads {args.threads} must be at least 1")
    if args.device:
        check_device(args.device)
    if args.chart:
        check_chart_file(args.chart)
    for file in filter(None, (args.json, args.chart)):
        if not Path(file).parent.is_dir():
            raise FileNotFoundError(f"the folder of {file!r} does not exist")


def show_progress(repetitions: range) -> Iterator[int]:
    return iter(tqdm(repetitions, desc="repetitions", disable=None))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"benchmark.py: error: {error.args[0] if isinstance(error, KeyError) else error}")
