#!/usr/bin/env python3
"""Exports a trained model with its post-processing, and proves it against the original.

    tools/export_model.py --config-file configs/digits/panoptic.yaml --format onnx --task panoptic --output exported \\
        --opts MODEL.WEIGHTS weights/digits_panoptic.safetensors

The folder is used by `mask2former.deploy.load(FOLDER)`. It is written whole or not at all; what exists is not
overwritten. Exit status: 0 written, 1 the exported model gives other results, 2 wrong use.
"""

from __future__ import annotations

import argparse
import logging
import sys

from mask2former.config import load_config
from mask2former.data.reading import read_image
from mask2former.deploy.export.exporter import ExportOptions, export_model
from mask2former.deploy.export.formats import DTYPES, FORMATS
from mask2former.deploy.export.parity import ParityError
from mask2former.deploy.export.tasks import OUTPUTS
from mask2former.deploy.pictures import find_pictures


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = parse(arguments)
    try:
        options = ExportOptions(
            format=args.format,
            precision=args.precision,
            task=args.task,
            fixed_size=tuple(args.fixed_size) if args.fixed_size else None,
            fixed_batch=args.fixed_batch,
            calibration=[read_image(str(path), "RGB") for path in find_pictures(args.calibration)]
            if args.calibration
            else (),
        )
        exported = export_model(load_config(args.config_file, args.opts), options, args.output)
    except ParityError as error:
        print(f"export_model.py: error: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        # A KeyError would print its message in quotes.
        print(f"export_model.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    print(exported)
    print(f"\nwritten to {exported.folder}", *exported.notes, sep="\n")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--precision", default="fp32", choices=DTYPES, help="of the network (default: fp32)")
    parser.add_argument(
        "--task", default="panoptic", choices=OUTPUTS, help="raw: logits alone, results are made outside the graph"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="must not exist")
    parser.add_argument(
        "--fixed-size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="of pictures for the network; default: any"
    )
    parser.add_argument("--fixed-batch", type=int, metavar="COUNT", help="pictures of a call; default: any number")
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="PATH",
        help="int8: pictures or folders from which ranges are learned (static); without, linear layers alone become "
        "integers and find ranges in every call (dynamic)",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
