#!/usr/bin/env python
"""Prepares the full ADE20K (847 classes): python datasets/prepare_ade20k_full_sem_seg.py."""

from __future__ import annotations

from mask2former.data.preparation.ade20k_full import prepare_ade20k_full
from mask2former.data.preparation.command import preparation_parser, short_errors


def main(arguments: list[str] | None = None) -> None:
    parser = preparation_parser(
        "Makes ADE20K_2021_17_01/{images,annotations}_detectron2/ with 847 classes, sides reduced to 512."
    )
    args = parser.parse_args(arguments)
    with short_errors():
        outcome = prepare_ade20k_full(args.root, num_workers=args.num_workers)
    print(f"ADE20K full: {outcome}")


if __name__ == "__main__":
    main()
