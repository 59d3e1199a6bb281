#!/usr/bin/env python3
"""Times the stages of inference or of a training step, beside transformers' Mask2Former on the same weights.

    tools/benchmark.py --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml --size 512 704
    tools/benchmark.py --training --size 384 384 --batch-size 2 --targets 20 200

Figures are medians over the repetitions with their range; the two sides take turns. Let nothing else run meanwhile.
Weights are random, unless --opts names some: MODEL.WEIGHTS FILE.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from mask2former.benchmark import DTYPES, Report, Workload, benchmark, check_device, report_table
from mask2former.config import load_config

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = ROOT / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    logging.basicConfig(level=logging.WARNING)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device:
        check_device(args.device)
    overrides = ["MODEL.WEIGHTS", "", *(["MODEL.DEVICE", args.device] if args.device else [])]
    cfg = load_config(args.config_file, [*overrides, *args.opts])
    reports: list[Report] = []
    for batch_size, num_targets in product(args.batch_size, args.targets if args.training else [0]):
        workload = Workload(tuple(args.size), batch_size, args.training, num_targets, args.precision, args.kept_queries)
        report = benchmark(
            cfg, workload, repeats=args.repeats, with_transformers=not args.alone, progress=show_progress
        )
        if not reports:
            print("  ".join(f"{name}: {value}" for name, value in report.settings.items()))
        print("\n" + report_table(report), flush=True)
        reports.append(report)
    if args.json:
        content = {
            "config_file": args.config_file,
            "opts": args.opts,
            "reports": [report.as_dict() for report in reports],
        }
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG), metavar="FILE", help="default: COCO panoptic R50")
    parser.add_argument("--training", action="store_true", help="measure the training step instead of inference")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 704), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="N", help="one table for each")
    parser.add_argument(
        "--targets", type=int, nargs="+", default=[20], metavar="N", help="targets of a training picture (default: 20)"
    )
    parser.add_argument("--precision", choices=DTYPES, default="fp32", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--device", help="cpu or cuda (default: the config's; CPU where there is no GPU)")
    parser.add_argument(
        "--kept-queries", type=int, default=20, metavar="N", help="queries in the panoptic merge (default: %(default)s)"
    )
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(arguments)


def show_progress(repetitions: range) -> Iterator[int]:
    return iter(tqdm(repetitions, desc="repetitions", disable=None))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"benchmark.py: error: {error.args[0] if isinstance(error, KeyError) else error}")
