"""Tiny data sets in the layouts of the real ones. Pictures are empty: loaders read annotations only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: label, outline, and what else the annotators say; later ones cover earlier ones.
CITYSCAPES_OBJECTS = [
    {"label": "road", "polygon": [[0, 0], [31, 0], [31, 23], [0, 23]]},
    {"label": "car", "polygon": [[2, 4], [16, 4], [16, 14], [2, 14]]},
    {"label": "license plate", "polygon": [[4, 10], [7, 10], [7, 12], [4, 12]]},
    {"label": "car", "polygon": [[10, 8], [22, 6], [24, 16], [11, 18]]},
    {"label": "person", "polygon": [[26, 2], [29, 2], [29, 9], [26, 9]], "deleted": 1},
    {"label": "persongroup", "polygon": [[20, 2], [28, 2], [28, 10], [20, 10]]},
    {"label": "bicycle", "polygon": [[5, 18], [7, 18], [7, 20], [5, 20]]},
    {"label": "pole", "polygon": [[4, 0], [8, 0], [8, 23], [4, 23]]},
]


def touch(root: Path, *files: str) -> None:
    """Creates empty files and the folders above them."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_cityscapes(root: Path, *, part: str = "train", objects: list[dict[str, Any]] = CITYSCAPES_OBJECTS) -> None:
    """Two cities with one picture each."""
    annotations = []
    for number, (city, class_id) in enumerate({"aachen": 26, "bochum": 7}.items()):
        stem = f"{city}_{number:06d}_000019"
        labels = f"cityscapes/gtFine/{part}/{city}/{stem}_gtFine"
        touch(root, f"cityscapes/leftImg8bit/{part}/{city}/{stem}_leftImg8bit.png", f"{labels}_labelTrainIds.png")
        touch(root, f"cityscapes/gtFine/cityscapes_panoptic_{part}/{stem}_gtFine_panoptic.png")
        write_json(root / f"{labels}_polygons.json", {"imgHeight": 24, "imgWidth": 32, "objects": objects})
        segments = [{"id": 1000 * class_id, "category_id": class_id, "area": 9, "bbox": [0, 0, 3, 3], "iscrowd": 0}]
        file_name = f"{stem}_gtFine_panoptic.png"
        annotations.append({"image_id": stem, "file_name": file_name, "segments_info": segments})
    write_json(root / f"cityscapes/gtFine/cityscapes_panoptic_{part}.json", {"annotations": annotations})


def write_panoptic(
    root: Path, *, panoptic_json: str, panoptic_root: str, image_root: str, sem_seg_root: str, segments: dict[str, int]
) -> None:
    """One picture for each entry of `segments`: name of the picture -> category of its only segment."""
    annotations = []
    for stem, category in segments.items():
        touch(root, f"{image_root}/{stem}.jpg", f"{panoptic_root}/{stem}.png", f"{sem_seg_root}/{stem}.png")
        info = [{"id": 7, "category_id": category, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]}]
        image_id = int(stem) if stem.isdigit() else stem
        annotations.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": info})
    write_json(root / panoptic_json, {"annotations": annotations})


def vistas_config(*names: str) -> dict[str, Any]:
    """A class file of Mapillary Vistas; names that begin with "object" are of things."""
    return {
        "version": "2.0",
        "labels": [
            {
                "name": name,
                "readable": name.rsplit("--", 1)[-1].replace("-", " ").title(),
                "color": [index, 2 * index, 3 * index],
                "instances": name.startswith("object"),
                "evaluate": not name.startswith("void"),
            }
            for index, name in enumerate(names)
        ],
    }
