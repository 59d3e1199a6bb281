#!/usr/bin/env python3
"""What a model is trained on: DATASETS.TRAIN as it is annotated, or as the training loader hands it out.

    tools/visualize_data.py --config-file configs/digits/panoptic.yaml --output-dir drawings
    tools/visualize_data.py --config-file configs/digits/panoptic.yaml --source annotation --show

`dataloader` draws the first samples of training with SEED, after INPUT.DATASET_MAPPER_NAME and its augmentations: the
padded picture, its targets, and its semantic labels where the mapper reads some. `annotation` draws what the label
files say, of pictures spread over the data set.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from tqdm import tqdm

from mask2former.deploy.pictures import write_picture
from mask2former.deploy.window import Window
from mask2former.engine import config_for_run
from mask2former.engine.training_data import SOURCES


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    cfg = config_for_run(args.config_file, args.opts)
    with contextlib.ExitStack() as stack:
        window = stack.enter_context(Window("Training data")) if args.show else None
        drawings = SOURCES[args.source](cfg, args.num)
        for number, (name, picture) in enumerate(tqdm(drawings, total=args.num, unit="picture", disable=None)):
            if args.output_dir is not None:
                write_picture(args.output_dir / f"{number:06d}_{name}.png", picture)
            if window is not None and not window.show(picture, wait=True):
                break


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--source", choices=SOURCES, default="dataloader", help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, metavar="FOLDER", help="pictures of the same name are replaced")
    parser.add_argument("--show", action="store_true", help="show each picture until a key is pressed; Escape stops")
    parser.add_argument("--num", type=int, default=20, metavar="N", help="pictures to draw (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(arguments)
    if args.num < 1:
        parser.error(f"--num must be 1 or more, got {args.num}")
    if args.output_dir is None and not args.show:
        parser.error("nowhere to draw to: add --output-dir FOLDER, --show, or both")
    return args


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        sys.exit(f"visualize_data.py: error: {error.args[0] if isinstance(error, KeyError) else error}")
