#!/usr/bin/env python3
"""Segments a picture of any size tile by tile, within a memory budget; a GeoTIFF gives a GeoTIFF and GeoJSON.

    tools/segment_large.py --model model_final.pkl --config-file CONFIG --input scene.tif \\
        --labels labels.tif --segments segments.geojson
    tools/segment_large.py --model exported_folder --task instance --input photo.jpg --segments segments.json

Nothing that exists is overwritten. Exit status: 0 done, 1 the picture cannot be read or memory does not suffice,
2 wrong use, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mask2former.deploy.label_files import (
    LABEL_SUFFIXES,
    SEGMENT_SUFFIXES,
    check_output,
    write_label_map,
    write_segments,
)
from mask2former.deploy.large_pictures import MAX_PIXELS, LargePicture, open_picture
from mask2former.deploy.mask_cleanup import MaskCleanup
from mask2former.deploy.runtime import Segmenter, load
from mask2former.deploy.tiles import Tile
from mask2former.deploy.tiling import segment_large

STOPPED_BY_USER = 130


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(arguments)
    try:
        # Whatever can be wrong with files is found out before a network is built.
        check_outputs(args)
        picture = open_input(args)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        return failed(error, 2)
    with picture:
        try:
            segmenter = load(args.model, config_file=args.config_file, device=args.device, overrides=args.opts)
            task = segmenter.tasks[0] if args.task is None else args.task
            if task == "instance" and args.labels:
                raise ValueError("instances may overlap and have no label map: give --segments without --labels")
            cleanup = cleanup_for(task, args)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            return failed(error, 2)
        try:
            segment(segmenter, picture, task, cleanup, args)
        except (OSError, ValueError) as error:
            return failed(error, 1)
        except KeyboardInterrupt:
            print("\nstopped; files that are named above are complete, others are not there", file=sys.stderr)
            return STOPPED_BY_USER
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="PATH", help="a checkpoint or an exported folder")
    parser.add_argument("--config-file", metavar="FILE", help="of a checkpoint (default: the one beside it)")
    parser.add_argument("--device", help="cpu or cuda (default: the model's)")
    parser.add_argument("--task", choices=("panoptic", "instance", "semantic"), help="default: the model's first")
    parser.add_argument("--input", required=True, metavar="FILE", help="TIFF is read part by part, others are decoded")
    parser.add_argument("--labels", type=Path, metavar="FILE", help=f"the label map: {', '.join(LABEL_SUFFIXES)}")
    parser.add_argument("--segments", type=Path, metavar="FILE", help=f"segments: {', '.join(SEGMENT_SUFFIXES)}")
    parser.add_argument("--tile", type=int, default=1024, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--overlap", type=int, default=128, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument(
        "--memory-budget", type=int, default=4096, metavar="MIB", help="of the whole process (default: %(default)s)"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="for temporary files (default: beside the output)"
    )
    picture = parser.add_argument_group("the picture")
    picture.add_argument("--bands", type=int, nargs="+", metavar="N", help="red, green and blue, or gray, from 1")
    picture.add_argument(
        "--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="what is black and white (above 8 bits)"
    )
    picture.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="default: %(default)s")
    masks = parser.add_argument_group("clean-up of masks")
    masks.add_argument(
        "--threshold",
        type=float,
        metavar="SHARE",
        help="least score or confidence (default: 0.5 for instances, else 0)",
    )
    masks.add_argument("--min-area", type=int, default=0, metavar="PIXELS", help="of a segment, or part of a class")
    masks.add_argument("--fill-holes", type=int, default=0, metavar="PIXELS", help="holes up to this area")
    masks.add_argument("--open", type=int, default=0, metavar="RADIUS", help="remove what is thinner")
    masks.add_argument("--close", type=int, default=0, metavar="RADIUS", help="close what is narrower")
    masks.add_argument("--nms", type=float, default=1.0, metavar="IOU", help="drop instances that overlap better ones")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides of a checkpoint"
    )
    return parser.parse_args(arguments)


def check_outputs(args: argparse.Namespace) -> None:
    if args.labels is None and args.segments is None:
        raise ValueError("nothing to write: give --labels, --segments or both")
    if args.labels is not None:
        check_output(args.labels, LABEL_SUFFIXES)
    if args.segments is not None:
        check_output(args.segments, SEGMENT_SUFFIXES)


def open_input(args: argparse.Namespace) -> LargePicture:
    return open_picture(
        args.input,
        bands=args.bands,
        value_range=None if args.value_range is None else tuple(args.value_range),
        max_pixels=args.max_pixels,
        memory_budget_mb=args.memory_budget,
    )


def cleanup_for(task: str, args: argparse.Namespace) -> MaskCleanup:
    if args.nms < 1 and task != "instance":
        raise ValueError(f"--nms is for instances: segments of the {task} task never overlap")
    # Every tile has as many instances as the model can give, most of them with scores near 0.
    threshold = (0.5 if task == "instance" else 0.0) if args.threshold is None else args.threshold
    return MaskCleanup(
        threshold=threshold,
        open_radius=args.open,
        close_radius=args.close,
        hole_area=args.fill_holes,
        min_area=args.min_area,
        nms_overlap=args.nms,
    )


def segment(
    segmenter: Segmenter, picture: LargePicture, task: str, cleanup: MaskCleanup, args: argparse.Namespace
) -> None:
    def progress(tiles: Iterable[Tile]) -> Iterable[Tile]:
        bar: Iterable[Tile] = tqdm(tiles, unit="tile", disable=None)
        return bar

    result = segment_large(
        segmenter,
        picture,
        task,
        tile=args.tile,
        overlap=args.overlap,
        cleanup=cleanup,
        memory_budget_mb=args.memory_budget,
        scratch=args.scratch or (args.labels or args.segments).parent,
        progress=progress,
    )
    height, width = picture.size
    print(f"{len(result.segments)} {task} segments in {height} x {width} pixels")
    writers = (
        (args.labels, partial(write_label_map, classes=segmenter.classes)),
        (args.segments, write_segments),
    )
    for path, write in writers:
        if path is not None:
            write(path, result, georeference=picture.georeference)
            print(f"written: {path}")


def failed(error: Exception, status: int) -> int:
    # A KeyError would print its message in quotes.
    print(f"segment_large.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
