#!/usr/bin/env python
"""Prepares the digit-disc data set: python datasets/prepare_digits.py --output datasets/digits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from tqdm import tqdm

from mask2former.data.datasets.digits_writer import DigitsSettings, prepare_digits


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Composes digit-disc scenes from digits and photographs.")
    parser.add_argument("--output", default="datasets/digits", help="folder to create (default: %(default)s)")
    parser.add_argument("--train", type=int, default=2000, help="number of training scenes (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="number of validation scenes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="side of a scene in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder prepared with other settings")
    return parser.parse_args(arguments)


def show_progress(indices: Iterable[int], split: str) -> Iterable[int]:
    return tqdm(indices, desc=f"{split} scenes", unit="scene")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        settings = DigitsSettings(num_train=args.train, num_val=args.val, size=args.size, seed=args.seed)
        is_new = prepare_digits(args.output, settings, overwrite=args.overwrite, progress=show_progress)
    except (OSError, ValueError) as error:
        sys.exit(f"prepare_digits: {error}")
    print(f"{args.output}: {args.train} + {args.val} scenes {'written' if is_new else 'already there'}")


if __name__ == "__main__":
    main()
