#!/usr/bin/env python
"""Prepares ADE20K's semantic labels: python datasets/prepare_ade20k_sem_seg.py."""

from __future__ import annotations

from mask2former.data.preparation.ade20k_semantic import prepare_ade20k_semantic
from mask2former.data.preparation.command import preparation_parser, short_errors


def main(arguments: list[str] | None = None) -> None:
    parser = preparation_parser(
        "Makes ADEChallengeData2016/annotations_detectron2/ (classes 0..149, 255 = void) from annotations/.",
        splits=("train", "val"),
    )
    args = parser.parse_args(arguments)
    with short_errors():
        outcome = prepare_ade20k_semantic(args.root, splits=tuple(args.splits), num_workers=args.num_workers)
    print(f"ADE20K semantic: {outcome}")


if __name__ == "__main__":
    main()
