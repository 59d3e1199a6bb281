#!/usr/bin/env python
"""Prepares COCO's semantic labels: python datasets/prepare_coco_semantic_annos_from_panoptic_annos.py."""

from __future__ import annotations

from mask2former.data.preparation.coco_semantic import prepare_coco_semantic
from mask2former.data.preparation.command import preparation_parser, short_errors


def main(arguments: list[str] | None = None) -> None:
    parser = preparation_parser(
        "Makes coco/panoptic_semseg_{train,val}2017/ (classes 0..132, 255 = void) from the panoptic labels.",
        splits=("train", "val"),
    )
    args = parser.parse_args(arguments)
    with short_errors():
        outcome = prepare_coco_semantic(args.root, splits=tuple(args.splits), num_workers=args.num_workers)
    print(f"COCO semantic: {outcome}")


if __name__ == "__main__":
    main()
