#!/usr/bin/env python
"""Prepares ADE20K's instance labels: python datasets/prepare_ade20k_ins_seg.py."""

from __future__ import annotations

from mask2former.data.preparation.ade20k_instance import prepare_ade20k_instance
from mask2former.data.preparation.command import preparation_parser, short_errors


def main(arguments: list[str] | None = None) -> None:
    parser = preparation_parser(
        "Makes ADEChallengeData2016/ade20k_instance_{train,val}.json from annotations_instance/.",
        splits=("train", "val"),
    )
    args = parser.parse_args(arguments)
    with short_errors():
        outcome = prepare_ade20k_instance(args.root, splits=tuple(args.splits), num_workers=args.num_workers)
    print(f"ADE20K instance: {outcome}")


if __name__ == "__main__":
    main()
