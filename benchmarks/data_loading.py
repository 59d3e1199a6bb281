#!/usr/bin/env python3
"""Samples per second of the training loader, for every mapper and number of worker processes.

    benchmarks/data_loading.py --workers 0 1 2

Pictures and labels are generated: 640x480 JPEG files with 15 objects on 6 bands of stuff, as COCO's are on average.
Each mapper runs with a published configuration that names it. Figures are medians over the repetitions with their
range; mappers and numbers of workers take turns. "CPU ms" is the processor's time for a sample where there are no
workers, which other programs disturb less; "MiB" is what one sample weighs on its way from a worker.

    benchmarks/data_loading.py --epochs 8 --copies 4000 --workers 2

tells instead how much memory the main process and its workers hold after each epoch (pages that they share count once),
of a data set in which every record occurs 4000 times.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from pathlib import Path

import torch
from scenes import Record, write_records

from mask2former.benchmark import Statistic
from mask2former.config import load_config
from mask2former.data.loader import SampleOrder, StepSampler, TrainDataset, TrainLoader
from mask2former.registry import DATASET_MAPPER_REGISTRY

CONFIGS = {
    "mask_former_semantic": "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
    "mask_former_panoptic": "ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml",
    "mask_former_instance": "ade20k/instance-segmentation/maskformer2_R50_bs16_160k.yaml",
    "coco_instance_lsj": "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "coco_panoptic_lsj": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
}
LABELS = {
    "mask_former_semantic": ("sem_seg_file_name",),
    "mask_former_panoptic": ("pan_seg_file_name", "segments_info"),
    "mask_former_instance": ("annotations",),
    "coco_instance_lsj": ("annotations",),
    "coco_panoptic_lsj": ("pan_seg_file_name", "segments_info"),
}
BATCH_SIZE = 4
NUM_PICTURES = 24


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="scenes") as folder:
        size = (args.size[0], args.size[1])
        records = write_records(Path(folder), NUM_PICTURES, size, args.objects, num_classes=80, rle=args.rle)
        loaders = {
            (name, num_workers): make_loader(name, records, num_workers, args.overrides)
            for name, num_workers in itertools.product(args.mappers, args.workers)
        }
        if args.epochs:
            for name, num_workers in itertools.product(args.mappers, args.workers):
                print_memory(name, records, num_workers, args)
            return 0
        rates: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
        processor: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
        weights = {}
        for _ in range(args.repeats):
            for key, loader in loaders.items():
                rate, busy, weights[key] = measure(loader, args.batches)
                rates[key].append(rate)
                processor[key].append(1000 * busy)
    print(f"{size[0]}x{size[1]} pixels, {args.objects} objects, {'run lengths' if args.rle else 'polygons'}")
    print(f"{'mapper':<24}{'workers':>8}{'samples/s':>12}{'(range)':>18}{'CPU ms':>8}{'MiB':>8}")
    for (name, num_workers), values in rates.items():
        figure = Statistic.of(values)
        busy = "" if num_workers else f"{Statistic.of(processor[name, num_workers]).median:.1f}"
        spread = f"({figure.smallest:.1f} - {figure.largest:.1f})"
        print(f"{name:<24}{num_workers:>8}{figure.median:12.1f}{spread:>18}{busy:>8}{weights[name, num_workers]:8.2f}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mappers", nargs="+", choices=list(CONFIGS), default=list(CONFIGS), metavar="NAME")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="0: no own process")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--objects", type=int, default=15, metavar="N", help="per picture; default: %(default)s")
    parser.add_argument("--rle", action="store_true", help="annotations are run lengths instead of polygons")
    parser.add_argument("--batches", type=int, default=6, metavar="N", help=f"timed, of {BATCH_SIZE} samples each")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, metavar="N", help="tell memory after each epoch instead of speed")
    parser.add_argument("--copies", type=int, default=1, metavar="N", help="how often a record occurs, for --epochs")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="changes of the configurations")
    return parser.parse_args(arguments)


def make_loader(name: str, records: list[Record], num_workers: int, overrides: list[str]) -> TrainLoader:
    cfg = load_config(Path(__file__).resolve().parents[1] / "configs" / CONFIGS[name], overrides)
    mapper = DATASET_MAPPER_REGISTRY.get(name)(cfg, True)
    kept = ("file_name", "image_id", "height", "width", *LABELS[name])
    own = [{key: record[key] for key in kept} for record in records]
    dataset = TrainDataset(own, mapper, seed=0, skip_broken=False, num_workers=num_workers)
    return TrainLoader(dataset, StepSampler(SampleOrder(len(own), seed=0), step_size=BATCH_SIZE), num_workers)


def measure(loader: TrainLoader, num_batches: int) -> tuple[float, float, float]:
    """Samples per second over `num_batches`, after as many as the workers have under way; seconds of this process's
    processor, and MiB, of a sample."""
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    start, busy_start = time.perf_counter(), time.process_time()
    samples = [sample for _ in range(num_batches) for sample in next(batches)]
    seconds, busy = time.perf_counter() - start, time.process_time() - busy_start
    mib = sum(len(pickle.dumps(sample)) for sample in samples) / len(samples) / 2**20
    return len(samples) / seconds, busy / len(samples), mib


def print_memory(name: str, records: list[Record], num_workers: int, args: argparse.Namespace) -> None:
    """An epoch here is as many samples as there are pictures; the records are many more, drawn from all over."""
    loader = make_loader(name, records * args.copies, num_workers, args.overrides)
    batches = iter(loader)
    print(f"{name}, {num_workers} workers, {len(loader.dataset)} records: MiB after each {NUM_PICTURES} samples")
    for _ in range(args.epochs):
        for _ in range(NUM_PICTURES // BATCH_SIZE):
            next(batches)
        print(f"{memory_mib():8.1f}", end="", flush=True)
    print()


def memory_mib() -> float:
    """Of this process and its workers, pages that several of them have divided among these (Linux)."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    rollups = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes]
    return sum(int(line.split()[1]) for text in rollups for line in text.splitlines() if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    sys.exit(main())
