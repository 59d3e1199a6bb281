#!/usr/bin/env python3
"""Segments a generated picture tile by tile: time, and the most memory that the process had.

    benchmarks/large_picture.py --size 10000 10000 --task panoptic --memory-budget 4096
    benchmarks/large_picture.py --size 10000 10000 --task semantic --format png --scratch /var/tmp

The picture is a mosaic of digit scenes at their own scale, a tiled GeoTIFF or a PNG; the model is the shipped one,
which was trained on single scenes. Results are written as files, as tools/segment_large.py does, and removed. The share
of correct pixels says whether they mean something.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mask2former.data.datasets.digits import VOID, draw_scene, load_material, sample_scene, scene_random
from mask2former.deploy.label_files import write_label_map, write_segments
from mask2former.deploy.large_pictures import open_picture
from mask2former.deploy.mask_cleanup import MaskCleanup
from mask2former.deploy.results import Segmentation
from mask2former.deploy.runtime import load
from mask2former.deploy.tiling import segment_large

WEIGHTS = Path(__file__).resolve().parents[1] / "weights/digits_panoptic.safetensors"
SCENE = 96  # pixels a side
NUM_SCENES = 300  # different ones in the mosaic
CHECKED_ROWS = 480  # of the picture, whose truth is kept


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="large_picture_") as name:
        folder = Path(name)
        path = folder / f"picture.{args.format}"
        truth = write_mosaic(path, *args.size)
        # Its own memory must not count: what is left of it is freed, and the peak starts afresh.
        forget_peak()
        run(path, truth, folder, args)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(10_000, 10_000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--task", choices=("panoptic", "instance", "semantic"), default="panoptic")
    parser.add_argument("--tile", type=int, default=96, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--overlap", type=int, default=16, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--memory-budget", type=int, default=4096, metavar="MIB", help="default: %(default)s")
    parser.add_argument("--format", choices=("tif", "png"), default="tif")
    parser.add_argument("--scratch", metavar="FOLDER", help="for the picture and its results (default: the system's)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    return parser.parse_args(arguments)


def run(path: Path, truth: NDArray[np.uint8], folder: Path, args: argparse.Namespace) -> None:
    segmenter = load(str(WEIGHTS), overrides=("INPUT.MIN_SIZE_TEST", "0"))
    started, processor = time.perf_counter(), time.process_time()
    with open_picture(path, memory_budget_mb=args.memory_budget) as picture:
        result = segment_large(
            segmenter,
            picture,
            args.task,
            tile=args.tile,
            overlap=args.overlap,
            cleanup=MaskCleanup(threshold=0.5 if args.task == "instance" else 0.0),
            memory_budget_mb=args.memory_budget,
            scratch=folder,
            progress=lambda tiles: tqdm(tiles, unit="tile", disable=None),
        )
        segmented, segmented_peak = time.perf_counter(), peak_mib()
        if result.label_map is not None:
            suffix = ".tif" if args.format == "tif" else ".png"
            write_label_map(folder / f"labels{suffix}", result, segmenter.classes, picture.georeference)
        write_segments(
            folder / ("segments.geojson" if args.format == "tif" else "segments.json"), result, picture.georeference
        )
    written = time.perf_counter()
    print(f"picture            {args.size[0]} x {args.size[1]} {args.format}, {path.stat().st_size / 2**20:.0f} MiB")
    print(f"tiles              {args.tile} pixels, overlap {args.overlap}; budget {args.memory_budget} MiB")
    print(f"{args.task} segments  {len(result.segments)}; {correct_share(result, truth):.1%} of pixels correct")
    print(f"segmented in       {segmented - started:.0f} s, peak {segmented_peak:.0f} MiB")
    print(f"written in         {written - segmented:.0f} s, peak {peak_mib():.0f} MiB")
    print(f"processor time     {time.process_time() - processor:.0f} s")
    for file in sorted(folder.iterdir()):
        print(f"{file.name:<18} {file.stat().st_size / 2**20:.1f} MiB")


def write_mosaic(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """Writes the picture and returns the classes of its first rows, 255 = void."""
    material = load_material("val")
    scenes = [
        draw_scene(sample_scene(material, size=SCENE, random=scene_random(0, "val", index)), material)
        for index in range(NUM_SCENES)
    ]
    classes = [np.full((SCENE, SCENE), VOID, dtype=np.uint8) for _ in scenes]
    for labels, scene in zip(classes, scenes, strict=True):
        for segment in scene.segments:
            labels[segment.mask] = segment.category
    random = np.random.default_rng(0)
    order = random.integers(NUM_SCENES, size=(-(-height // SCENE), -(-width // SCENE)))

    def rows(numbers: NDArray[np.int64], pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.concatenate([pictures[number] for number in numbers], axis=1)[:, :width]

    images = [scene.image for scene in scenes]
    if path.suffix == ".png":
        Image.fromarray(np.concatenate([rows(numbers, images) for numbers in order])[:height]).save(path)
    else:
        write_mosaic_tiff(path, (rows(numbers, images) for numbers in order), height, width)
    return np.concatenate([rows(numbers, classes) for numbers in order[: CHECKED_ROWS // SCENE]])[:height]


def write_mosaic_tiff(path: Path, strips: Iterator[NDArray[np.uint8]], height: int, width: int) -> None:
    import rasterio

    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": SCENE, "compress": "deflate"}
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 600_000, 0, -0.5, 5_400_000)}
    with rasterio.open(path, "w", **profile) as file:
        for index, strip_HW3 in enumerate(strips):
            top = index * SCENE
            strip_HW3 = strip_HW3[: height - top]
            file.write(strip_HW3.transpose(2, 0, 1), window=((top, top + len(strip_HW3)), (0, width)))


def correct_share(result: Segmentation, truth: NDArray[np.uint8]) -> float:
    """Of the pixels of the first rows whose class is known; instances are compared with things only."""
    num_rows = len(truth)
    found = np.full(truth.shape, -1)
    if result.task == "semantic":
        assert result.label_map is not None
        found = result.label_map[:num_rows]
    elif result.task == "panoptic":
        assert result.label_map is not None
        found = np.array([-1, *(segment.category for segment in result.segments)])[result.label_map[:num_rows]]
    else:
        from mask2former.deploy.mask_runs import bitmap, runs_of_rle

        for segment in result.segments[::-1]:
            left, top, right, bottom = (int(edge) for edge in segment.box)
            if top < num_rows:
                mask = bitmap(runs_of_rle(segment.mask), result.height, (left, top, right, min(bottom, num_rows)))
                found[top:num_rows, left:right][: len(mask)][mask] = segment.category
        truth = np.where(truth < 10, truth, VOID)
    return float((found == truth)[truth != VOID].mean())


def forget_peak() -> None:
    """The kernel's record of the largest memory, as far as it lets itself be reset."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
