#!/usr/bin/env python3
"""Frames per second of a video from file to file, beside those of the network alone.

    benchmarks/video_throughput.py --frames 40 --repeats 5
    benchmarks/video_throughput.py --config-file configs/digits/panoptic.yaml \\
        --opts MODEL.WEIGHTS weights/digits_panoptic.safetensors INPUT.MIN_SIZE_TEST 480 INPUT.MAX_SIZE_TEST 854

The sides take turns on one generated clip of 480x854 with moving discs:

    network    the predictor on frames in memory: resizing, network, post-processing
    objects    the same with identities: `segment_video` on frames in memory
    video      what demo/demo.py does: decodes H.264, segments, draws, encodes H.264

Medians over the repetitions with their range; the ratio is that of neighboring runs. With --serial a fourth side does
decoding, drawing and encoding between the frames.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from mask2former.config import load_config
from mask2former.data.datasets.digit_clips import clip_random, sample_clip
from mask2former.data.datasets.digits import draw_scene, load_material
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.video import FrameResult, segment_video
from mask2former.deploy.video_io import VideoReader, VideoWriter
from mask2former.deploy.video_stages import run_stages

DEFAULT_CONFIG = "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
HEIGHT, WIDTH = 480, 854


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    predictor = Predictor.from_config(load_config(args.config_file, ["MODEL.WEIGHTS", "", *args.opts]))
    frames = draw_frames(args.frames)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        with VideoWriter(film, 25) as writer:
            for frame in frames:
                writer.write(frame)
        sides: dict[str, Callable[[], object]] = {
            "network": lambda: [predictor(frame) and None for frame in frames],
            "objects": lambda: deque(segment_video(frames, predictor), maxlen=0),
            "video": lambda: run_video(film, predictor, overlapped=True),
        }
        if args.serial:
            sides["serial"] = lambda: run_video(film, predictor, overlapped=False)
        rates = measure(sides, len(frames), args.repeats)
    print(f"{WIDTH}x{HEIGHT}, {len(frames)} frames, {torch.get_num_threads()} threads of torch")
    for name, values in rates.items():
        ratios = [value / network for value, network in zip(values, rates["network"], strict=True)]
        print(f"{name:<10}{figure(values)} frames/s, {figure(ratios)} of the network's")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=DEFAULT_CONFIG, help="default: COCO panoptic R50, random weights")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's")
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(arguments)


def draw_frames(count: int) -> list[NDArray[np.uint8]]:
    """The middle of a square clip of moving discs."""
    material = load_material("val")
    clip = sample_clip(material, size=WIDTH, num_frames=count, random=clip_random(0, "val", 0))
    top = (WIDTH - HEIGHT) // 2
    images = (draw_scene(clip.frame(number), material).image for number in range(count))
    return [np.ascontiguousarray(image[top : top + HEIGHT]) for image in images]


def run_video(film: Path, predictor: Predictor, *, overlapped: bool) -> None:
    target = film.with_name("drawn.mp4")
    with VideoReader(film) as reader, VideoWriter(target, reader.fps) as writer:

        def write(result: FrameResult) -> None:
            writer.write(result.segmentation.draw(result.frame))

        if overlapped:
            run_stages(reader, lambda frames: segment_video(frames, predictor), write)
        else:
            for result in segment_video(reader, predictor):
                write(result)
    target.unlink()


def measure(sides: dict[str, Callable[[], object]], num_frames: int, repeats: int) -> dict[str, list[float]]:
    """Frames per second of every side in each repetition; a first one is left out."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            rate = num_frames / (time.perf_counter() - start)
            rates[name] += [rate] if repetition else []
    return rates


def figure(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g} - {max(values):.3g})"


if __name__ == "__main__":
    main()
