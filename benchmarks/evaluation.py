#!/usr/bin/env python3
"""Time that evaluation takes per image, in the process that runs the network and until the figures are there.

    benchmarks/evaluation.py

Truth and results are generated: 640x480 pictures with 15 objects on 6 bands of stuff, 133 classes; results are the
truth, shifted, with 100 instances. "process" is how long the evaluator keeps the network waiting for each image; "in
all" is the time of a whole evaluation up to its figures, without that of the network, divided by the number of images.
With --network the evaluator waits between images as for a network on another device. Figures are medians over the
repetitions with their range.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scenes import NUM_STUFF, Record, draw_scene, write_records

import mask2former  # noqa: F401  # before Detectron2
from mask2former.benchmark import Statistic
from mask2former.data.masks import encode_rle
from mask2former.evaluation import InstanceSegEvaluator, PanopticEvaluator, SemanticEvaluator

from detectron2.data import DatasetCatalog, MetadataCatalog  # isort: skip
from detectron2.structures import Boxes, Instances  # isort: skip

NUM_CLASSES = 133
NUM_INSTANCES = 100
NAME = "benchmark_evaluation"
TASKS = {"panoptic": PanopticEvaluator, "instance": InstanceSegEvaluator, "semantic": SemanticEvaluator}


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    size = (args.size[0], args.size[1])
    with tempfile.TemporaryDirectory(prefix="evaluation") as folder:
        records = write_records(Path(folder), args.images, size, args.objects, num_classes=NUM_CLASSES)
        register(Path(folder), records, size, args.objects)
        logging.disable(logging.WARNING)
        outputs = [make_output(number, size, args.objects) for number in range(args.images)]
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in TASKS}
        for _ in range(args.repeats):
            for name, evaluator in TASKS.items():
                seconds[name].append(
                    measure(evaluator(NAME, output_dir=f"{folder}/{name}"), records, outputs, args.network / 1000)
                )
    print(f"{args.images} images of {size[0]}x{size[1]}; milliseconds per image")
    print(f"{'results':<12}{'process':>10}{'(range)':>18}{'in all':>10}{'(range)':>18}")
    for name, pairs in seconds.items():
        line = f"{name:<12}"
        for values in zip(*pairs, strict=True):
            figure = Statistic.of([1000 * value / args.images for value in values])
            line += f"{figure.median:10.1f}{f'({figure.smallest:.1f} - {figure.largest:.1f})':>18}"
        print(line)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--objects", type=int, default=15, metavar="N", help="per picture; default: %(default)s")
    parser.add_argument("--network", type=float, default=0, metavar="MS", help="time of an image; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch; default: %(default)s")
    return parser.parse_args(arguments)


def register(folder: Path, records: list[Record], size: tuple[int, int], num_objects: int) -> None:
    """The records as a data set with COCO's panoptic and instance files."""
    ids = {index: index for index in range(NUM_CLASSES)}
    things = {index: index for index in range(NUM_CLASSES - NUM_STUFF)}
    categories = [{"id": index, "name": str(index), "isthing": int(index in things)} for index in ids]
    panoptic, instances = [], []
    for number, record in enumerate(records):
        scene = draw_scene(number, size, num_objects)
        segments = []
        for info in record["segments_info"]:
            mask = scene.ids * 1000 == info["id"]
            segments.append({key: info[key] for key in ("id", "category_id", "iscrowd")} | {"area": int(mask.sum())})
            if info["isthing"]:
                entry = {"id": len(instances) + 1, "image_id": number, "area": int(mask.sum()), "bbox": box_of(mask)}
                instances.append({**entry, "category_id": info["category_id"], "segmentation": encode_rle(mask)})
        panoptic.append({"image_id": number, "file_name": f"{number:04d}_panoptic.png", "segments_info": segments})
    images = [{"id": number, "height": size[0], "width": size[1]} for number in range(len(records))]
    only_things = [category for category in categories if category["isthing"]]
    files = {
        "panoptic": {"annotations": panoptic, "categories": categories},
        "instances": {"images": images, "annotations": instances, "categories": only_things},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME)
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder),
        json_file=str(folder / "instances.json"),
        thing_dataset_id_to_contiguous_id=things,
        stuff_dataset_id_to_contiguous_id=ids,
        thing_classes=[str(index) for index in things],
        stuff_classes=[str(index) for index in ids],
        ignore_label=255,
    )


def box_of(mask: Any) -> list[int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def make_output(number: int, size: tuple[int, int], num_objects: int) -> dict[str, Any]:
    """What a model says that is a little beside the truth."""
    ids = np.roll(draw_scene(number, size, num_objects).ids, (3, 5), (0, 1))
    present = np.unique(ids).tolist()
    masks = torch.from_numpy(np.stack([ids == present[index % len(present)] for index in range(NUM_INSTANCES)]))
    instances = Instances(size, pred_masks=masks, pred_boxes=Boxes(torch.zeros(NUM_INSTANCES, 4)))
    instances.scores = torch.linspace(0.9, 0.1, NUM_INSTANCES)
    instances.pred_classes = torch.arange(NUM_INSTANCES) % (NUM_CLASSES - NUM_STUFF)
    segments = [{"id": index, "category_id": index % (NUM_CLASSES - NUM_STUFF), "isthing": True} for index in present]
    labels = torch.from_numpy(ids).long() % NUM_CLASSES
    scores = torch.full((NUM_CLASSES, *size), 0.1).scatter_(0, labels[None], 1.0)
    return {"panoptic_seg": (torch.from_numpy(ids), segments), "instances": instances, "sem_seg": scores}


def measure(
    evaluator: Any, records: list[Record], outputs: list[dict[str, Any]], network_seconds: float
) -> tuple[float, float]:
    """Seconds in `process`, and of the whole evaluation without those of the network."""
    evaluator.reset()
    in_process = 0.0
    start = time.perf_counter()
    for record, output in zip(records, outputs, strict=True):
        time.sleep(network_seconds)
        before = time.perf_counter()
        evaluator.process([record], [output])
        in_process += time.perf_counter() - before
    evaluator.evaluate()
    return in_process, time.perf_counter() - start - network_seconds * len(records)


if __name__ == "__main__":
    sys.exit(main())
