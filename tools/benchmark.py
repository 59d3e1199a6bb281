#!/usr/bin/env python3
"""Times the stages of inference, beside transformers' Mask2Former on the same (random) weights.

    tools/benchmark.py --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml --size 512 704

Figures are medians over the repetitions with their range; the two sides take turns. Let nothing else run meanwhile.
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

from mask2former.benchmark import benchmark, report_table
from mask2former.config import load_config

DEFAULT_CONFIG = (
    Path(__file__).resolve().parents[1] / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    logging.basicConfig(level=logging.WARNING)
    if args.threads:
        torch.set_num_threads(args.threads)
    # Weights: random ones, unless our side is measured alone and some are given.
    overrides = [
        *([] if args.alone else ["MODEL.WEIGHTS", ""]),
        *(["MODEL.DEVICE", args.device] if args.device else []),
    ]
    report = benchmark(
        load_config(args.config_file, [*overrides, *args.opts]),
        size=tuple(args.size),
        batch_size=args.batch_size,
        repeats=args.repeats,
        kept_queries=args.kept_queries,
        with_transformers=not args.alone,
        progress=show_progress,
    )
    if args.json:
        content = {"config_file": args.config_file, "opts": args.opts, **report.as_dict()}
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n")
    print("  ".join(f"{name}: {value}" for name, value in report.settings.items()))
    print(report_table(report))
    if report.why_alone:
        print(f"transformers was left out: {report.why_alone}")
    if report.deviation:
        print("largest relative difference of " + ", ".join(f"{k} logits {v:.1e}" for k, v in report.deviation.items()))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG), metavar="FILE", help="default: COCO panoptic R50")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 704), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--device", help="cpu or cuda (default: the config's; CPU where there is no GPU)")
    parser.add_argument(
        "--kept-queries", type=int, default=20, metavar="N", help="queries in the panoptic merge (default: %(default)s)"
    )
    parser.add_argument("--alone", action="store_true", help="leave transformers out; MODEL.WEIGHTS is then loaded")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(arguments)


def show_progress(repetitions: range) -> Iterator[int]:
    return iter(tqdm(repetitions, desc="repetitions", disable=None))


if __name__ == "__main__":
    sys.exit(main())
