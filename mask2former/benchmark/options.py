"""Command-line options that say what is measured, for the programs that measure it."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from mask2former.benchmark.workload import DTYPES, Workload

__all__ = ["add_workload_options", "workloads"]

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CONFIG = ROOT / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """The config, and what `workloads` reads."""
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG), metavar="FILE", help="default: COCO panoptic R50")
    parser.add_argument("--training", action="store_true", help="measure the training step instead of inference")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 704), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="N", help="pictures of a call")
    parser.add_argument("--precision", choices=DTYPES, nargs="+", default=["fp32"], help="default: fp32")
    parser.add_argument(
        "--targets", type=int, nargs="+", default=[20], metavar="N", help="targets of a training picture (default: 20)"
    )
    parser.add_argument(
        "--kept-queries", type=int, default=20, metavar="N", help="queries in the panoptic merge (default: %(default)s)"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")


def workloads(args: argparse.Namespace, *, processor_time: bool = False) -> list[Workload]:
    """One for every combination of the values.

    Args:
        args: has the options of `add_workload_options`.
        processor_time: see `Workload`.
    """
    targets = args.targets if args.training else [0]
    return [
        Workload(
            size=tuple(args.size),
            batch_size=batch_size,
            training=args.training,
            num_targets=num_targets,
            precision=precision,
            kept_queries=args.kept_queries,
            processor_time=processor_time,
        )
        for batch_size, precision, num_targets in product(args.batch_size, args.precision, targets)
    ]
