#!/usr/bin/env python3
"""Memory of a process that segments a long video, after every frame: does it stay flat?

    python -m benchmarks.video_memory --frames 1000 --chart docs/images/video_memory.png

Discs with digits move through pictures of 480x854; every 25 frames there are others, so that identities never cease to
be given. The shipped model of digit scenes segments them as image model and, in clips, as video model; each way has a
process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mask2former.benchmark.chart import check_chart_file
from mask2former.benchmark.memory import own_memory
from mask2former.config import load_config
from mask2former.data.datasets.digit_clips import clip_random, sample_clip
from mask2former.data.datasets.digits import draw_scene, load_material
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.video import segment_video

WEIGHTS = ["MODEL.WEIGHTS", "weights/digits_panoptic.safetensors", "MODEL.DEVICE", "cpu"]
IMAGE_MODEL = ("configs/digits/panoptic.yaml", WEIGHTS)
# The weights of scenes in the model of clips.
VIDEO_MODEL = (
    "configs/digits/video.yaml",
    [*WEIGHTS, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 13, "DATASETS.TEST", ("digits_panoptic_val",)],
)
WAYS: dict[str, tuple[tuple[str, list[Any]], dict[str, Any]]] = {
    "panoptic": (IMAGE_MODEL, {"task": "panoptic"}),
    "panoptic, smoothing 0.5, latency 5": (IMAGE_MODEL, {"task": "panoptic", "smoothing": 0.5, "latency": 5}),
    "semantic, smoothing 0.5, latency 2": (IMAGE_MODEL, {"task": "semantic", "smoothing": 0.5, "latency": 2}),
    "video model, clips of 16, overlap 4": (VIDEO_MODEL, {"window": 16, "overlap": 4}),
}
FRAMES_OF_A_SCENE = 25
MIB = 2**20


class Course(NamedTuple):
    """Of one way."""

    mebibytes: list[float]  # after every frame
    num_identities: int  # that were given
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 854), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--chart", help="a picture of the courses")
    args = parser.parse_args()
    if args.chart:
        check_chart_file(args.chart)
    courses = {}
    columns = ("frame 100", "last", "largest", "per 1000", "identities", "frames/s")
    print(f"{'MiB':<36} " + " ".join(f"{name:>10}" for name in columns), flush=True)
    for way in args.ways:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            course = pool.apply(segment, (way, args.frames, tuple(args.size), args.threads))
        courses[way] = course
        settled = course.mebibytes[100:] or course.mebibytes
        slope = 1000 * np.polyfit(np.arange(len(settled)), settled, 1)[0] if len(settled) > 1 else 0.0
        print(
            f"{way:<36} {settled[0]:>10.0f} {settled[-1]:>10.0f} {max(course.mebibytes):>10.0f} {slope:>+10.1f} "
            f"{course.num_identities:>10} {args.frames / course.seconds:>10.1f}",
            flush=True,
        )
    if args.chart:
        save_chart(courses, args.chart, f"{args.frames} frames of {args.size[0]}x{args.size[1]}")


def segment(way: str, num_frames: int, size: tuple[int, int], num_threads: int) -> Course:
    """Segments a video, keeps nothing of the results, and looks at the memory after each of them."""
    torch.set_num_threads(num_threads)
    (config_file, overrides), options = WAYS[way]
    predictor = Predictor.from_config(load_config(config_file, overrides))
    mebibytes: list[float] = []
    last_identity = 0
    start = time.perf_counter()
    for result in segment_video(moving_discs(num_frames, size), predictor, **options):
        identities = [segment.track_id or 0 for segment in result.segmentation.segments]
        last_identity = max(last_identity, *identities, 0)
        mebibytes.append(own_memory() / MIB)
    return Course(mebibytes, last_identity, time.perf_counter() - start)


def moving_discs(num_frames: int, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Drawn small, enlarged by a whole factor and cut to (height, width)."""
    material = load_material("val")
    factor = 8
    side = -(-max(size) // factor)
    for number in range(num_frames):
        scene, place = divmod(number, FRAMES_OF_A_SCENE)
        if place == 0:
            random = clip_random(0, "val", scene)
            clip = sample_clip(material, size=side, num_frames=FRAMES_OF_A_SCENE, random=random)
        small = draw_scene(clip.frame(place), material).image
        enlarged = small.repeat(factor, axis=0).repeat(factor, axis=1)
        top = (enlarged.shape[0] - size[0]) // 2
        yield np.ascontiguousarray(enlarged[top : top + size[0], : size[1]])


def save_chart(courses: dict[str, Course], file: str, title: str) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for way, course in courses.items():
        axes.plot(course.mebibytes, linewidth=1.2, label=f"{way} ({course.num_identities} identities)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(len(course.mebibytes) for course in courses.values()))
    axes.set_xlabel("frame")
    axes.set_ylabel("resident memory of the process, MiB")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
