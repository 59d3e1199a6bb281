#!/usr/bin/env python3
"""Seconds that the YouTube-VIS evaluator takes, from masks of a network to AP.

    benchmarks/video_evaluation.py --videos 300 --frames 30 --predictions 20

Every video has moving discs, a quarter of which are objects; predictions are the same discs, some pixels off. Masks are
made beforehand and serve several videos. "process" keeps the network waiting, "evaluate" waits for the workers and
measures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mask2former  # noqa: F401  # before Detectron2
from mask2former.data.masks import encode_rle
from mask2former.evaluation.youtube_vis_evaluation import YTVISEvaluator

from detectron2.data import MetadataCatalog  # isort: skip

NUM_CLASSES = 40
NUM_DIFFERENT = 4  # videos
DATASET = "video_evaluation_benchmark"


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    videos = [moving_discs(args, generator) for _ in range(min(NUM_DIFFERENT, args.videos))]
    with tempfile.TemporaryDirectory() as folder:
        json_file = Path(folder) / "truth.json"
        json_file.write_text(json.dumps(ground_truth(args, videos)))
        MetadataCatalog.get(DATASET).set(
            json_file=str(json_file),
            thing_dataset_id_to_contiguous_id={number + 1: number for number in range(NUM_CLASSES)},
        )
        evaluator = YTVISEvaluator(DATASET, folder, distributed=False)
        evaluator.reset()
        predicted = [masks.roll((2, 3), dims=(2, 3)) for masks in videos]
        process_seconds = 0.0
        begun = time.perf_counter()
        for number in range(args.videos):
            masks = predicted[number % len(predicted)]
            prediction = {
                "pred_scores": torch.rand(len(masks), generator=generator).tolist(),
                "pred_labels": [index % NUM_CLASSES for index in range(len(masks))],
                "pred_masks": list(masks),
            }
            before = time.perf_counter()
            evaluator.process([{"video_id": number + 1}], [prediction])
            process_seconds += time.perf_counter() - before
        before = time.perf_counter()
        figures = evaluator.evaluate()["segm"]
        end = time.perf_counter()
    height, width = args.size
    print(f"{args.videos} videos of {args.frames} frames of {width}x{height}, {args.predictions} predictions each")
    print(f"process {process_seconds:.1f} s, evaluate {end - before:.1f} s, in all {end - begun:.1f} s")
    print(f"AP {figures['AP']:.1f}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=30, metavar="N", help="of a video; default: %(default)s")
    parser.add_argument("--predictions", type=int, default=20, metavar="N", help="of a video; default: %(default)s")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch; default: %(default)s")
    return parser.parse_args(arguments)


def moving_discs(args: argparse.Namespace, generator: torch.Generator) -> Tensor:
    """(N, T, H, W) bool."""
    height, width = args.size
    size = torch.tensor([height, width], dtype=torch.float32)
    start, step = (torch.rand(args.predictions, 2, generator=generator) for _ in range(2))
    radius = (0.05 + 0.15 * torch.rand(args.predictions, generator=generator)) * height
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    masks = torch.empty(args.predictions, args.frames, height, width, dtype=torch.bool)
    for index in range(args.predictions):
        for frame in range(args.frames):
            row, column = ((start[index] + 0.02 * frame * (step[index] - 0.5)) * size).tolist()
            masks[index, frame] = (rows - row) ** 2 + (columns - column) ** 2 < radius[index].item() ** 2
    return masks


def ground_truth(args: argparse.Namespace, videos: list[Tensor]) -> dict[str, Any]:
    """The first quarter of the discs as objects, in the layout of YouTube-VIS."""
    height, width = args.size
    objects = [
        [[encode_rle(mask.numpy()) for mask in track] for track in masks[: max(1, args.predictions // 4)]]
        for masks in videos
    ]
    annotations: list[dict[str, Any]] = []
    for number in range(args.videos):
        for index, track in enumerate(objects[number % len(objects)]):
            areas = videos[number % len(videos)][index].flatten(1).sum(dim=1).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": number + 1,
                    "category_id": index % NUM_CLASSES + 1,
                    "iscrowd": 0,
                    "segmentations": track,
                    "areas": areas,
                    "bboxes": [[0, 0, width, height]] * args.frames,
                }
            )
    facts = {"height": height, "width": width, "length": args.frames, "file_names": [""] * args.frames}
    return {
        "videos": [{"id": number + 1, **facts} for number in range(args.videos)],
        "categories": [{"id": number + 1, "name": str(number + 1)} for number in range(NUM_CLASSES)],
        "annotations": annotations,
    }


if __name__ == "__main__":
    main()
