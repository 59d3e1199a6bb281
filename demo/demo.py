#!/usr/bin/env python3
"""Segments pictures, a video or the webcam, and draws the result with names and scores.

    demo/demo.py --config-file CONFIG --input a.jpg b.jpg --output drawings --opts MODEL.WEIGHTS model_final.pkl
    demo/demo.py --config-file CONFIG --video-input film.mp4 --output film_segmented.mp4 --opts MODEL.WEIGHTS ...

In videos objects keep their number and color. Nothing that exists is overwritten. Exit status: 0 all done, 1 something
could not be read, 2 wrong use, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mask2former.config import load_config
from mask2former.data.reading import BrokenSampleError, read_image
from mask2former.deploy.frame_files import FRAME_SUFFIXES, FrameFilesWriter
from mask2former.deploy.frame_sources import FrameFolder, of_one_size
from mask2former.deploy.pictures import find_pictures, output_paths, write_picture
from mask2former.deploy.pipeline import read_ahead
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.track_file import TrackWriter
from mask2former.deploy.video import FrameResult, segment_video, video_tasks
from mask2former.deploy.video_io import VideoError, VideoReader, VideoWriter
from mask2former.deploy.video_stages import run_stages
from mask2former.deploy.window import Window, camera_frames, check_window_support
from mask2former.visualization import draw_prediction, strip

Picture = NDArray[np.uint8]
Frames = Iterable[Picture]
Draw = Callable[[Picture], Picture]
Run = Callable[[Predictor], int]

DEFAULT_CONFIG = (
    Path(__file__).resolve().parents[1] / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
)
DRAWN_INSTANCES = 0.5  # score that an instance needs to be drawn
STOPPED_BY_USER = 130


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(arguments)
    try:
        # Whatever can be wrong with files and screen is found out before a network is built.
        run = prepare_pictures(args) if args.input else prepare_frames(args)
        predictor = build_predictor(args)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # A KeyError would print its message in quotes.
        print(f"demo.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    try:
        return run(predictor)
    except OSError as error:  # the disk is full, or --output lies where nothing can be written
        print(f"demo.py: error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:  # an option that this model does not have
        print(f"demo.py: error: {error}", file=sys.stderr)
        return 2


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG), metavar="FILE", help="default: COCO panoptic R50")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="pictures, folders of pictures, patterns ('~/a/*.jpg')"
    )
    source.add_argument("--video-input", metavar="PATH", help="a video file, or a folder of frames, sorted by number")
    source.add_argument("--webcam", action="store_true", help="the first camera, until Escape or Ctrl-C")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="a folder; a file for one picture or a video; frames/%%05d.png for the frames of a video; without it a "
        "window opens",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="the objects of a video with their masks, in the format of YouTube-VIS"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=share,
        metavar="SHARE",
        help="draw only what has at least this score (0..1): panoptic segments (default: the config's "
        "OBJECT_MASK_THRESHOLD), instances (default: 0.5), semantic pixels (default: all)",
    )
    parser.add_argument("--side-by-side", action="store_true", help="the picture itself beside the drawing")
    video = parser.add_argument_group("videos")
    video.add_argument(
        "--fps", type=Fraction, metavar="N", help="frames per second of a folder of frames or a camera (default: 25)"
    )
    video.add_argument(
        "--smoothing",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="image models: share of the past in what is shown; 0.5 steadies edges (default: 0)",
    )
    video.add_argument(
        "--latency",
        type=int,
        default=0,
        metavar="FRAMES",
        help="image models: look so many frames ahead to fill gaps and leave out flickers (default: 0)",
    )
    video.add_argument("--window", type=int, metavar="FRAMES", help="video models: frames of a clip (default: 16)")
    video.add_argument(
        "--overlap", type=int, metavar="FRAMES", help="video models: frames that clips share (default: 4)"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides, last"
    )
    args = parser.parse_args(arguments)
    if args.input and args.json:
        parser.error("--json is for videos")
    return args


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def build_predictor(args: argparse.Namespace) -> Predictor:
    overrides = list(args.opts)
    if args.confidence_threshold is not None:
        # The panoptic merge drops queries below this score, so drawing alone could only raise the threshold.
        overrides += ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", str(args.confidence_threshold)]
    cfg = load_config(args.config_file, overrides)
    if not cfg.MODEL.WEIGHTS:
        logging.warning("MODEL.WEIGHTS is empty: the model is untrained and its results mean nothing")
    return Predictor.from_config(cfg)


def prepare_pictures(args: argparse.Namespace) -> Run:
    """Checks --input and --output; returns what remains to be done once there is a model."""
    paths = find_pictures(args.input)
    if not args.output:
        check_window_support()
        return lambda predictor: run_pictures(paths, picture_draw(args, predictor), show=Window("Mask2Former"))
    targets = output_paths(paths, args.output)
    return lambda predictor: run_pictures(paths, picture_draw(args, predictor), targets=targets)


def picture_draw(args: argparse.Namespace, predictor: Predictor) -> Draw:
    """The function that turns a picture into a drawing of its segments."""

    def draw(picture: Picture) -> Picture:
        if video_tasks(predictor) == ("instance",) and getattr(predictor.model, "is_video", False):
            drawing = drawn(next(segment_video([picture], predictor)), args)
        else:
            prediction = predictor(picture)
            drawing = draw_prediction(picture, prediction, predictor.metadata, threshold=args.confidence_threshold)
        return strip([picture, drawing]) if args.side_by_side else drawing

    return draw


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


def prepare_frames(args: argparse.Namespace) -> Run:
    """Opens the video or camera and the outputs; returns what remains to be done once there is a model."""
    if not args.output and not args.json:
        check_window_support()
    frames, num_frames, fps, name = open_frames(args)
    if not args.output and not args.json:
        return lambda predictor: show_frames(args, frames, num_frames, predictor)
    writer = open_writer(args.output, fps, name) if args.output else None
    tracks = TrackWriter(Path(args.json).expanduser(), name) if args.json else None
    return lambda predictor: write_frames(args, frames, num_frames, predictor, writer, tracks)


def open_frames(args: argparse.Namespace) -> tuple[Frames, int | None, Fraction, str]:
    """The frames, how many there are (None: unknown), frames per second, and what the output is called after."""
    fps = args.fps or Fraction(25)
    if args.webcam:
        return camera_frames(), None, fps, "webcam"
    path = Path(args.video_input).expanduser()
    if path.is_dir():
        folder = FrameFolder(path)
        return of_one_size(folder, str(path)), folder.num_frames, fps, path.resolve().name
    reader = VideoReader(path)
    if args.fps:
        raise ValueError(f"--fps is for folders of frames and cameras; {path} says itself that it has {reader.fps}")
    return of_one_size(reader, str(path)), reader.num_frames, reader.fps, path.stem


def open_writer(output: str, fps: Fraction, name: str) -> VideoWriter | FrameFilesWriter:
    path = Path(output).expanduser()
    if path.suffix.lower() in FRAME_SUFFIXES:
        return FrameFilesWriter(path)
    return VideoWriter(path if path.suffix and not path.is_dir() else path / f"{name}.mp4", fps)


def segmented(args: argparse.Namespace, predictor: Predictor, frames: Frames) -> Iterator[FrameResult]:
    return segment_video(
        frames,
        predictor,
        smoothing=args.smoothing,
        latency=args.latency,
        window=args.window,
        overlap=args.overlap,
        # Semantic results have no segments with a score: their pixels are chosen when they are drawn.
        threshold=None if video_tasks(predictor)[0] == "semantic" else args.confidence_threshold,
    )


def drawn(result: FrameResult, args: argparse.Namespace) -> Picture:
    threshold = args.confidence_threshold
    if threshold is None:
        threshold = DRAWN_INSTANCES if result.segmentation.task == "instance" else 0.0
    drawing = result.segmentation.draw(result.frame, threshold=threshold)
    return strip([result.frame, drawing]) if args.side_by_side else drawing


def write_frames(
    args: argparse.Namespace,
    frames: Frames,
    num_frames: int | None,
    predictor: Predictor,
    writer: VideoWriter | FrameFilesWriter | None,
    tracks: TrackWriter | None,
) -> int:
    """Writes drawing and objects of every frame; files are complete also when the video breaks off or is stopped."""
    outputs = [output for output in (writer, tracks) if output is not None]
    # A camera's frames come when the network is ready for them, and are to be seen when they were taken.
    times: deque[float] = deque()
    if args.webcam:
        frames = timed(frames, times)

    def write(result: FrameResult) -> None:
        seconds = times.popleft() if args.webcam else None
        if isinstance(writer, VideoWriter):
            writer.write(drawn(result, args), seconds)
        elif writer is not None:
            writer.write(drawn(result, args))
        if tracks is not None:
            tracks.write(result.segmentation)

    def kept() -> str:
        return f"{outputs[0].num_frames} frames in {' and '.join(str(output.path) for output in outputs)}"

    try:
        with ExitStack() as stack:
            for output in outputs:
                stack.enter_context(output)
            run_stages(frames, partial(segmented, args, predictor), write, num_frames=num_frames)
    except KeyboardInterrupt:
        return stopped(kept())
    except (VideoError, RuntimeError) as error:
        print(f"demo.py: error: {error}{f' ({kept()})' if outputs[0].num_frames else ''}", file=sys.stderr)
        return 1
    print(kept())
    return 0


def timed(frames: Frames, times: deque[float]) -> Iterator[Picture]:
    """The frames; the time of each, in seconds, is put into `times`."""
    for frame in frames:
        times.append(time.monotonic())
        yield frame


def show_frames(args: argparse.Namespace, frames: Frames, num_frames: int | None, predictor: Predictor) -> int:
    """Shows the drawing of every frame; of a camera's, those that come while the network is busy are left out."""
    try:
        with (
            Window("Mask2Former") as window,
            read_ahead(frames, newest_only=args.webcam) as ahead,
            read_ahead(segmented(args, predictor, ahead)) as results,
        ):
            for result in tqdm(results, total=num_frames, unit=" frames", disable=None):
                if not window.show(drawn(result, args), wait=False):
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
