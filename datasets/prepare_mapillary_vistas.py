#!/usr/bin/env python
"""Checks Mapillary Vistas and prepares its v1.2 labels: python datasets/prepare_mapillary_vistas.py --version v1.2."""

from __future__ import annotations

from mask2former.data.preparation.command import preparation_parser, short_errors
from mask2former.data.preparation.mapillary_vistas import VERSIONS, prepare_mapillary_vistas


def main(arguments: list[str] | None = None) -> None:
    parser = preparation_parser(
        "Checks mapillary_vistas/; takes v1.2 labels out of release v2.0.", splits=("train", "val")
    )
    parser.add_argument("--version", choices=VERSIONS, default="v1.2", help="of the labels (default: %(default)s)")
    args = parser.parse_args(arguments)
    with short_errors():
        report = prepare_mapillary_vistas(
            args.root, version=args.version, splits=tuple(args.splits), num_workers=args.num_workers
        )
    for counts in report.splits:
        print(counts)
    brought = f", labels: {report.brought}" if any(report.brought) else ""
    print(f"Mapillary Vistas {args.version} is ready, {report.num_classes} classes{brought}")


if __name__ == "__main__":
    main()
