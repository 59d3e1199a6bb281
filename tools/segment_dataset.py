#!/usr/bin/env python3
"""Segments a whole data set into tables of results, on one machine or a Ray cluster. The same command continues a run
that was killed.

    tools/segment_dataset.py --model weights/digits_panoptic.safetensors --input datasets/digits/val --output results
    tools/segment_dataset.py --model DIR --input table.parquet --output results --engine ray --workers 1..16

Exit status: 0 all done, 1 broken pictures (errors.jsonl lists them) or an error on the way, 2 wrong use, 130 Ctrl-C,
143 SIGTERM.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys

from mask2former.deploy import load
from mask2former.deploy.dataset.inputs import find_inputs
from mask2former.deploy.dataset.run import ENGINES, MASKS, DatasetRun
from mask2former.deploy.dataset.shards import SHARD_FORMATS


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = parse(arguments)
    try:
        run = DatasetRun(
            functools.partial(load, args.model, config_file=args.config_file, overrides=args.opts),
            task=args.task,
            masks=args.masks,
            form=args.format,
            engine=args.engine,
            num_workers=args.workers,
            num_threads=args.threads,
            batch_size=args.batch_size,
            shard_size=args.shard_size,
            retry_errors=args.retry_errors,
            options={"config_file": args.config_file, "opts": args.opts},
        )
        inputs = find_inputs(args.input)
        if inputs.num_repeated:
            print(f"{inputs.num_repeated} pictures are named more than once: done once each", file=sys.stderr)
        segment = run.prepare(inputs, args.output)
    except (OSError, ImportError, ValueError, KeyError) as error:
        # A KeyError would print its message in quotes.
        print(f"segment_dataset.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    try:
        summary = segment()
    except OSError as error:  # the disk is full, workers were killed again and again
        print(f"segment_dataset.py: error: {error}", file=sys.stderr)
        return 1
    print(summary)
    if summary.num_broken:
        print(f"{args.output}/errors.jsonl says why {summary.num_broken} pictures are broken", file=sys.stderr)
    if summary.signal is not None:
        return 128 + summary.signal
    return 1 if summary.num_broken else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="PATH", help="a checkpoint, or a folder of export_model.py")
    parser.add_argument("--config-file", metavar="FILE", help="of a checkpoint that has none beside it")
    parser.add_argument(
        "--input", required=True, metavar="PATH", help="a folder with all inside it, a list of files (.txt), a .parquet"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new, or of the run that is to be continued")
    parser.add_argument("--task", help="panoptic, instance or semantic (default: the model's first)")
    parser.add_argument("--masks", choices=MASKS, default="rle", help="how masks are written (default: rle)")
    parser.add_argument("--format", choices=SHARD_FORMATS, default="parquet", help="default: parquet")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="default: local")
    parser.add_argument(
        "--workers",
        type=number_or_range,
        metavar="N[..N]",
        help="processes, or fewest..most Ray actors (default: one for each GPU, or each core up to 8)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="of each worker (default: the cores divided; Ray: 1)"
    )
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="default: 4")
    parser.add_argument(
        "--shard-size", type=positive, default=500, metavar="N", help="pictures in a file of results (default: 500)"
    )
    parser.add_argument("--retry-errors", action="store_true", help="try the pictures in errors.jsonl again")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides, last"
    )
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return int(text)


def number_or_range(text: str) -> tuple[int, int]:
    fewest, dots, most = text.partition("..")
    return positive(fewest), positive(most if dots else fewest)


if __name__ == "__main__":
    sys.exit(main())
