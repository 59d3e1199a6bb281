#!/usr/bin/env python3
"""Segments pictures, a video or the webcam, and draws the result with names and scores.

    demo/demo.py --config-file CONFIG --input a.jpg b.jpg --output drawings --opts MODEL.WEIGHTS model_final.pkl
    demo/demo.py --config-file CONFIG --video-input film.mp4 --output film_segmented.mp4 --opts MODEL.WEIGHTS ...

Nothing that exists is overwritten. Exit status: 0 all done, 1 something could not be read, 2 wrong use, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mask2former.config import load_config
from mask2former.data.reading import BrokenSampleError, read_image
from mask2former.deploy.pictures import find_pictures, output_paths, write_picture
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.video_io import VideoError, VideoReader, VideoWriter
from mask2former.deploy.window import Window, camera_frames, check_window_support
from mask2former.visualization import draw_prediction, strip

Picture = NDArray[np.uint8]
Draw = Callable[[Picture], Picture]

DEFAULT_CONFIG = (
    Path(__file__).resolve().parents[1] / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
)
CAMERA_FPS = 25  # of a video written from a camera, which does not say how fast it is
STOPPED_BY_USER = 130


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(arguments)
    try:
        # Whatever can be wrong with files and screen is found out before a network is built.
        run = prepare_pictures(args) if args.input else prepare_frames(args)
        draw = build_draw(args)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # A KeyError would print its message in quotes.
        print(f"demo.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    try:
        return run(draw)
    except OSError as error:  # the disk is full, or --output lies where nothing can be written
        print(f"demo.py: error: {error}", file=sys.stderr)
        return 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG), metavar="FILE", help="default: COCO panoptic R50")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="pictures, folders of pictures, patterns ('~/a/*.jpg')"
    )
    source.add_argument("--video-input", metavar="FILE", help="a video file")
    source.add_argument("--webcam", action="store_true", help="the first camera, until Escape or Ctrl-C")
    parser.add_argument(
        "--output", metavar="PATH", help="a folder, or a file for one picture or a video; without it a window opens"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=share,
        metavar="SHARE",
        help="draw only what has at least this score (0..1): panoptic segments (default: the config's "
        "OBJECT_MASK_THRESHOLD), instances (default: 0.5), semantic pixels (default: all)",
    )
    parser.add_argument("--side-by-side", action="store_true", help="the picture itself beside the drawing")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides, last"
    )
    return parser.parse_args(arguments)


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def build_draw(args: argparse.Namespace) -> Draw:
    """Loads the model; the function that it returns turns a picture into a drawing of its segments."""
    overrides = list(args.opts)
    threshold = args.confidence_threshold
    if threshold is not None:
        # The panoptic merge drops queries below this score, so drawing alone could only raise the threshold.
        overrides += ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", str(threshold)]
    cfg = load_config(args.config_file, overrides)
    if not cfg.MODEL.WEIGHTS:
        logging.warning("MODEL.WEIGHTS is empty: the model is untrained and its results mean nothing")
    predictor = Predictor.from_config(cfg)

    def draw(picture: Picture) -> Picture:
        drawing = draw_prediction(
            picture,
            predictor(picture),
            predictor.metadata,
            threshold=threshold,
            # From frame to frame the order of instances changes: shifted colors would flicker.
            vary_instances=bool(args.input),
        )
        return strip([picture, drawing]) if args.side_by_side else drawing

    return draw


def prepare_pictures(args: argparse.Namespace) -> Callable[[Draw], int]:
    """Checks --input and --output; returns what remains to be done once there is a model."""
    paths = find_pictures(args.input)
    if not args.output:
        check_window_support()
        return lambda draw: run_pictures(paths, draw, show=Window("Mask2Former"))
    targets = output_paths(paths, args.output)
    return lambda draw: run_pictures(paths, draw, targets=targets)


def run_pictures(
    paths: list[Path], draw: Draw, *, targets: list[Path] | None = None, show: Window | None = None
) -> int:
    """Draws every picture; those that cannot be read are named, skipped, and listed again at the end."""
    broken: list[str] = []
    num_done = 0
    try:
        for index, path in enumerate(tqdm(paths, unit="picture", disable=None)):
            try:
                picture = read_image(str(path), "RGB")
            except BrokenSampleError as error:
                broken.append(str(error))
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                continue
            drawing = draw(picture)
            num_done += 1
            if targets is not None:
                write_picture(targets[index], drawing)
            elif show is not None and not show.show(drawing, wait=True):
                break
    except KeyboardInterrupt:
        return stopped(f"{num_done} of {len(paths)} pictures are done")
    if targets is not None and num_done:
        where = targets[0] if len(paths) == 1 else common_folder(targets)
        print(f"{num_done} of {len(paths)} drawings written to {where}")
    if broken:
        print(f"{len(broken)} of {len(paths)} pictures could not be read:", *broken, sep="\n  ", file=sys.stderr)
    return 1 if broken else 0


def prepare_frames(args: argparse.Namespace) -> Callable[[Draw], int]:
    """Opens the video or camera and the output; returns what remains to be done once there is a model."""
    if not args.output:
        check_window_support()
    if args.webcam:
        fps, num_frames, frames = Fraction(CAMERA_FPS), None, camera_frames()
        default_name = "webcam.mp4"
    else:
        reader = VideoReader(args.video_input)
        fps, num_frames, frames = reader.fps, reader.num_frames, iter(reader)
        default_name = f"{Path(args.video_input).stem}.mp4"
    if not args.output:
        return lambda draw: show_frames(frames, draw, num_frames)
    output = Path(args.output).expanduser()
    writer = VideoWriter(output if output.suffix and not output.is_dir() else output / default_name, fps)
    return lambda draw: write_frames(frames, draw, num_frames, writer)


def write_frames(frames: Iterable[Picture], draw: Draw, num_frames: int | None, writer: VideoWriter) -> int:
    """Writes the drawing of every frame; the file is completed also when the video breaks off or the user stops."""
    try:
        with writer:
            for frame in tqdm(frames, total=num_frames, unit="frame", disable=None):
                writer.write(draw(frame))
    except KeyboardInterrupt:
        return stopped(f"{writer.path} holds the first {writer.num_frames} frames")
    except (VideoError, RuntimeError) as error:
        kept = f"; {writer.path} holds the frames before" if writer.num_frames else ""
        print(f"demo.py: error: {error}{kept}", file=sys.stderr)
        return 1
    print(f"{writer.num_frames} frames written to {writer.path}")
    return 0


def show_frames(frames: Iterable[Picture], draw: Draw, num_frames: int | None) -> int:
    try:
        with Window("Mask2Former") as window:
            for frame in tqdm(frames, total=num_frames, unit="frame", disable=None):
                if not window.show(draw(frame), wait=False):
                    break
    except KeyboardInterrupt:
        return STOPPED_BY_USER
    except (VideoError, RuntimeError) as error:
        print(f"demo.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def stopped(what_is_kept: str) -> int:
    print(f"\nstopped: {what_is_kept}", file=sys.stderr)
    return STOPPED_BY_USER


def common_folder(paths: list[Path]) -> str:
    return os.path.commonpath([path.parent for path in paths]) or "."


if __name__ == "__main__":
    sys.exit(main())
