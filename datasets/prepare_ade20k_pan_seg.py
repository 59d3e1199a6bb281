#!/usr/bin/env python
"""Prepares ADE20K's panoptic labels: python datasets/prepare_ade20k_pan_seg.py."""

from __future__ import annotations

from mask2former.data.preparation.ade20k_panoptic import prepare_ade20k_panoptic
from mask2former.data.preparation.command import preparation_parser, short_errors


def main(arguments: list[str] | None = None) -> None:
    parser = preparation_parser(
        "Makes ade20k_panoptic_{train,val} (PNG and JSON) in ADEChallengeData2016 from semantic and instance labels.",
        splits=("train", "val"),
    )
    args = parser.parse_args(arguments)
    with short_errors():
        outcome = prepare_ade20k_panoptic(args.root, splits=tuple(args.splits), num_workers=args.num_workers)
    print(f"ADE20K panoptic: {outcome}")


if __name__ == "__main__":
    main()
