#!/usr/bin/env python
"""Prepares COCO-Stuff-10k v1.0: python datasets/prepare_coco_stuff_10k_v1.0_sem_seg.py."""

from __future__ import annotations

from mask2former.data.preparation.coco_stuff_10k import prepare_coco_stuff_10k
from mask2former.data.preparation.command import preparation_parser, short_errors


def main(arguments: list[str] | None = None) -> None:
    parser = preparation_parser(
        "Makes coco/coco_stuff_10k/{images,annotations}_detectron2/ from images/, annotations/*.mat and imageLists/."
    )
    args = parser.parse_args(arguments)
    with short_errors():
        outcome = prepare_coco_stuff_10k(args.root, num_workers=args.num_workers)
    print(f"COCO-Stuff-10k: {outcome}")


if __name__ == "__main__":
    main()
