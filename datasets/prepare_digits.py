#!/usr/bin/env python
"""Prepares the digit-disc data sets.

Pictures: python datasets/prepare_digits.py --output datasets/digits
Videos:   python datasets/prepare_digits.py --video --output datasets/digits_video
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from tqdm import tqdm

from mask2former.data.datasets.digit_clips_writer import DigitClipsSettings, prepare_digit_clips
from mask2former.data.datasets.digits_writer import DigitsSettings, prepare_digits

PICTURES, CLIPS = DigitsSettings(), DigitClipsSettings()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Composes digit-disc scenes, or with --video clips of moving discs, from digits and photographs."
    )
    parser.add_argument("--video", action="store_true", help="clips of moving discs instead of pictures")
    parser.add_argument(
        "--output", help="folder to create (default: datasets/digits, with --video datasets/digits_video)"
    )
    for split in ("train", "val"):
        defaults = f"default: {getattr(PICTURES, f'num_{split}')}, with --video {getattr(CLIPS, f'num_{split}')}"
        parser.add_argument(f"--{split}", type=int, help=f"number of {split} scenes or clips ({defaults})")
    parser.add_argument("--frames", type=int, help=f"frames of a clip, with --video (default: {CLIPS.num_frames})")
    parser.add_argument("--size", type=int, default=96, help="side of a scene in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder prepared with other settings")
    args = parser.parse_args(arguments)
    if args.frames is not None and not args.video:
        parser.error("--frames is of clips: add --video")
    return args


def show_progress(indices: Iterable[int], split: str) -> Iterable[int]:
    return tqdm(indices, desc=split, unit="item")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    output = args.output or ("datasets/digits_video" if args.video else "datasets/digits")
    given = {"num_train": args.train, "num_val": args.val, "num_frames": args.frames}
    given = {key: value for key, value in given.items() if value is not None}
    given |= {"size": args.size, "seed": args.seed}
    options = {"overwrite": args.overwrite, "progress": show_progress}
    try:
        if args.video:
            clips = DigitClipsSettings(**given)
            is_new = prepare_digit_clips(output, clips, **options)
            what = f"{clips.num_train} + {clips.num_val} clips of {clips.num_frames} frames"
        else:
            pictures = DigitsSettings(**given)
            is_new = prepare_digits(output, pictures, **options)
            what = f"{pictures.num_train} + {pictures.num_val} scenes"
    except (OSError, ValueError) as error:
        sys.exit(f"prepare_digits: {error}")
    print(f"{output}: {what} {'written' if is_new else 'already there'}")


if __name__ == "__main__":
    main()
