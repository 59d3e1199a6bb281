"""Tiny data sets as they are downloaded: the files of the real releases, before any preparation.

Each picture is noise, labeled as sky over ground with a strip of void and three objects.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from mask2former.data.datasets.categories import load_categories
from mask2former.data.masks import encode_rle, id_to_rgb

HEIGHT, WIDTH = 96, 128
HORIZON, NUM_VOID_ROWS = 48, 4
#: A release's name of a split -> number of pictures.
COUNTS = {"train": 3, "val": 2}


class Objects(NamedTuple):
    """Three boxes (left, top, right, bottom), ends exclusive; later ones cover earlier ones."""

    boxes: list[tuple[int, int, int, int]]

    def painted(self, *, sky: int, ground: int, void: int, values: list[int]) -> np.ndarray:
        """(H, W) int32 with one value for each region."""
        picture = np.full((HEIGHT, WIDTH), sky, dtype=np.int32)
        picture[HORIZON:] = ground
        picture[:NUM_VOID_ROWS] = void
        for (left, top, right, bottom), value in zip(self.boxes, values, strict=True):
            picture[top:bottom, left:right] = value
        return picture


def _objects(rng: np.random.Generator) -> Objects:
    # Side by side, so that each can be seen, and reaching below the horizon.
    lefts = [int(rng.integers(start, start + 12)) for start in (2, 44, 86)]
    return Objects([(left, int(rng.integers(20, 40)), left + 28, int(rng.integers(60, 90))) for left in lefts])


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _save_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def write_ade20k(root: Path) -> None:
    """ADEChallengeData2016 with the instance labels of its 100 classes: bed, person, curtain."""
    rng = np.random.default_rng(0)
    folder = root / "ADEChallengeData2016"
    for split, part in (("train", "training"), ("val", "validation")):
        for number in range(COUNTS[split]):
            stem = f"ADE_{split}_{number + 1:08d}"
            objects = _objects(rng)
            _save(folder / "images" / part / f"{stem}.jpg", _noise(rng))
            semantic = objects.painted(sky=3, ground=4, void=0, values=[8, 13, 19])
            _save(folder / "annotations" / part / f"{stem}.png", semantic)
            classes = objects.painted(sky=0, ground=0, void=0, values=[1, 4, 7])
            numbers = objects.painted(sky=0, ground=0, void=0, values=[1, 2, 3])
            instances = np.stack([classes, numbers, np.zeros_like(classes)], axis=-1)
            _save(folder / "annotations_instance" / part / f"{stem}.png", instances)


def write_coco(root: Path) -> None:
    """Pictures, panoptic and instance annotations of COCO 2017: person, car, dog, sky, grass."""
    rng = np.random.default_rng(1)
    folder = root / "coco"
    for split in COUNTS:
        images, panoptic, instances = [], [], []
        for number in range(1, COUNTS[split] + 1):
            stem = f"{number:012d}"
            ids = _objects(rng).painted(sky=7, ground=300, void=0, values=[1001, 1002, 70003])
            categories = {7: 187, 300: 193, 1001: 1, 1002: 3, 70003: 18}
            _save(folder / f"{split}2017" / f"{stem}.jpg", _noise(rng))
            _save(folder / f"panoptic_{split}2017" / f"{stem}.png", id_to_rgb(ids))
            images.append({"id": number, "file_name": f"{stem}.jpg", "height": HEIGHT, "width": WIDTH})
            segments = _segments(ids, categories)
            panoptic.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": segments})
            instances += [
                {
                    **segment,
                    "id": 10 * number + index,
                    "image_id": number,
                    "segmentation": encode_rle(ids == segment["id"]),
                }
                for index, segment in enumerate(segments)
                if segment["id"] > 1000
            ]
        names = [{"id": c["id"], "name": c["name"], "isthing": c["isthing"]} for c in COCO_CATEGORIES]
        things = [category for category in names if category["isthing"]]
        annotations = folder / "annotations"
        for kind, found, categories_of_kind in (("panoptic", panoptic, names), ("instances", instances, things)):
            content = {"images": images, "annotations": found, "categories": categories_of_kind}
            _save_json(annotations / f"{kind}_{split}2017.json", content)


def write_youtube_vis(root: Path) -> None:
    """Frames and annotations of YouTube-VIS 2019; in the release the files of valid list no objects."""
    rng = np.random.default_rng(4)
    length = 3
    categories = [
        {"id": number, "name": category.name} for number, category in enumerate(load_categories("ytvis_2019"), start=1)
    ]
    for split, folder in (("train", "train"), ("val", "valid")):
        videos, tracks = [], []
        for video in range(1, COUNTS[split] + 1):
            names = [f"{video:010x}/{frame:05d}.jpg" for frame in range(length)]
            maps = [_objects(rng).painted(sky=0, ground=0, void=0, values=[1, 2, 3]) for _ in names]
            for name in names:
                _save(root / "ytvis_2019" / folder / "JPEGImages" / name, _noise(rng))
            videos.append({"id": video, "file_names": names, "length": length, "height": HEIGHT, "width": WIDTH})
            for number in (1, 2, 3):
                seen = [ids == number if frame != number - 1 else None for frame, ids in enumerate(maps)]
                tracks.append(
                    {
                        "id": 10 * video + number,
                        "video_id": video,
                        "category_id": 5 * number,
                        "iscrowd": 0,
                        "segmentations": [None if mask is None else encode_rle(mask) for mask in seen],
                        "bboxes": [None if mask is None else [0, 0, WIDTH, HEIGHT] for mask in seen],
                        "areas": [None if mask is None else int(mask.sum()) for mask in seen],
                    }
                )
        content = {"videos": videos, "annotations": tracks, "categories": categories}
        _save_json(root / "ytvis_2019" / f"{folder}.json", content)


def write_cityscapes(root: Path) -> None:
    """leftImg8bit and gtFine: polygons and the label pictures that are downloaded with them."""
    rng = np.random.default_rng(2)
    ids = {"road": 7, "sky": 23, "car": 26, "person": 24, "bicycle": 33}
    for split in ("train", "val", "test"):
        for number in range(COUNTS.get(split, 1)):
            stem = f"aachen_{number:06d}_000019"
            objects = _objects(rng)
            folder = root / "cityscapes/gtFine" / split / "aachen"
            _save(root / "cityscapes/leftImg8bit" / split / "aachen" / f"{stem}_leftImg8bit.png", _noise(rng))
            regions = {
                "sky": (0, NUM_VOID_ROWS, WIDTH, HORIZON),
                "road": (0, HORIZON, WIDTH, HEIGHT),
                **dict(zip(("car", "person", "bicycle"), objects.boxes, strict=True)),
            }
            polygons = [{"label": label, "polygon": _corners(box)} for label, box in regions.items()]
            content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": polygons}
            _save_json(folder / f"{stem}_gtFine_polygons.json", content)
            values = [ids[label] for label in ("car", "person", "bicycle")]
            labels = objects.painted(sky=ids["sky"], ground=ids["road"], void=0, values=values)
            _save(folder / f"{stem}_gtFine_labelIds.png", labels)
            numbered = np.where(labels > 23, labels * 1000, labels).astype(np.uint16)
            cv2.imwrite(str(folder / f"{stem}_gtFine_instanceIds.png"), numbered)


def write_mapillary_vistas(root: Path) -> None:
    """Release v1.2: person, car, bicycle, sky, road."""
    rng = np.random.default_rng(3)
    folder = root / "mapillary_vistas"
    categories = load_categories("mapillary_65")
    labels = [
        {"name": c.key, "readable": c.name, "color": list(c.rgb), "instances": c.is_thing, "evaluate": True}
        for c in categories
    ]
    void = {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0] * 3, "instances": False, "evaluate": False}
    _save_json(folder / "config.json", {"labels": [*labels, void]})
    place = {c.name: c.id for c in categories}
    sky, road, *things = (place[name] for name in ("Sky", "Road", "Person", "Car", "Bicycle"))
    for split, part in (("train", "training"), ("val", "validation")):
        annotations = []
        for number in range(COUNTS[split]):
            stem = f"picture_{number}"
            objects = _objects(rng)
            _save(folder / part / "images" / f"{stem}.jpg", _noise(rng))
            semantic = objects.painted(sky=sky, ground=road, void=len(categories) + 1, values=things) - 1
            _save(folder / part / "labels" / f"{stem}.png", semantic)
            segment_ids = [category + 256 for category in things]
            ids = objects.painted(sky=sky, ground=road, void=0, values=segment_ids)
            _save(folder / part / "panoptic" / f"{stem}.png", id_to_rgb(ids))
            segments = _segments(ids, {sky: sky, road: road, **dict(zip(segment_ids, things, strict=True))})
            annotations.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments})
        names = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in categories]
        content = {"annotations": annotations, "categories": names}
        _save_json(folder / part / "panoptic/panoptic_2018.json", content)


def _segments(ids: np.ndarray, categories: dict[int, int]) -> list[dict[str, Any]]:
    """COCO's `segments_info`; categories: segment id -> category id."""
    segments = []
    for segment_id, category in categories.items():
        rows, columns = np.nonzero(ids == segment_id)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
        segments.append({"id": segment_id, "category_id": category, "area": len(rows), "bbox": box, "iscrowd": 0})
    return segments


def _corners(box: tuple[int, int, int, int]) -> list[list[int]]:
    """A polygon that the official script fills up to the box's ends."""
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    return [[left, top], [right, top], [right, bottom], [left, bottom]]
