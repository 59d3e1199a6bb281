#!/usr/bin/env python
"""Prepares Cityscapes' semantic and panoptic labels: python datasets/prepare_cityscapes.py."""

from __future__ import annotations

from mask2former.data.preparation.cityscapes import SPLITS, prepare_cityscapes
from mask2former.data.preparation.command import preparation_parser, short_errors


def main(arguments: list[str] | None = None) -> None:
    parser = preparation_parser(
        "Makes labelTrainIds pictures and cityscapes_panoptic_{split} in gtFine with Cityscapes' own scripts.",
        splits=SPLITS,
    )
    args = parser.parse_args(arguments)
    with short_errors():
        outcome = prepare_cityscapes(args.root, splits=tuple(args.splits), num_workers=args.num_workers)
    print(f"Cityscapes: {outcome}")


if __name__ == "__main__":
    main()
