"""`python -m mask2former.data.check NAME`: one page on what would go wrong in training."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from mask2former.data.check import check_dataset, page, save_samples

_PROGRAM = "mask2former.data.check"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when there is no error, 1 when there is one or the data set cannot be read."""
    args = parse(arguments)
    try:
        if args.register:
            sys.path.insert(0, "")  # modules of the working directory, also when a test or a wrapper runs this
            importlib.import_module(args.register)
        checked = check_dataset(args.dataset, max_images=args.max_images, num_workers=args.num_workers)
        sys.stdout.write(page(checked, all_classes=args.all_classes))
        if args.save_samples:
            metadata = MetadataCatalog.get(args.dataset)
            written = save_samples(checked.records, metadata, args.save_samples, args.num_samples)
            sys.stdout.write(f"{len(written)} samples in {args.save_samples}\n")
    except (OSError, ValueError, ImportError) as error:
        sys.stderr.write(f"{_PROGRAM}: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{_PROGRAM}: interrupted\n")
        return 130
    return int(checked.has_errors)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_PROGRAM}",
        description="Reads a registered data set and tells on one page what would go wrong in training.",
        epilog="Exit status: 0 without errors (warnings are allowed), else 1.",
    )
    parser.add_argument("dataset", help="a registered name, e.g. digits_panoptic_train")
    parser.add_argument("--register", metavar="MODULE", help="import this module first: it registers your data set")
    parser.add_argument(
        "--max-images", type=int, metavar="N", help="look at N pictures or videos, spread over all (default: all)"
    )
    parser.add_argument("--num-workers", type=int, metavar="N", help="number of processes (default: one per core)")
    parser.add_argument("--all-classes", action="store_true", help="list every class, also if there are hundreds")
    parser.add_argument("--save-samples", metavar="FOLDER", help="draw some pictures with their annotations")
    parser.add_argument("--num-samples", type=int, default=10, metavar="N", help="how many (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.num_samples < 1:
        parser.error(f"--num-samples must be 1 or more, got {args.num_samples}")
    return args


if __name__ == "__main__":
    sys.exit(main())
