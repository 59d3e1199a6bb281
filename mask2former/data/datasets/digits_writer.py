"""Writes digit-disc scenes in the formats real data sets come in, as one folder that appears only when it is complete.

digits/{train,val}/000000.png               pictures
digits/panoptic_{train,val}/000000.png      COCO panoptic: segment ids as RGB
digits/semantic_{train,val}/000000.png      class 0..12 per pixel, 255 = void
digits/annotations/panoptic_{split}.json    COCO panoptic
digits/annotations/instances_{split}.json   COCO instances: polygons for whole discs, RLE for covered ones
digits/preparation.json                     the settings the folder was made with
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former.data.datasets.categories import Category, load_categories
from mask2former.data.datasets.digits import (
    VOID,
    DrawnScene,
    Segment,
    draw_scene,
    load_material,
    sample_scene,
    scene_random,
)
from mask2former.data.datasets.prepared_folder import Progress, no_progress, prepare_folder, write_json
from mask2former.data.masks import encode_rle, id_to_rgb, mask_to_polygon

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class DigitsSettings:
    """What a prepared folder depends on, and nothing else."""

    num_train: int = 2000
    num_val: int = 200
    size: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_train < 1 or self.num_val < 1:
            raise ValueError(f"both splits need at least one scene, got train {self.num_train} and val {self.num_val}")
        if self.size < 32:
            raise ValueError(f"scenes need at least 32 pixels a side for a readable digit, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


def prepare_digits(
    output: str | Path, settings: DigitsSettings, *, overwrite: bool = False, progress: Progress = no_progress
) -> bool:
    """Writes both splits under `output`; an interrupted run leaves nothing there.

    Args:
        overwrite: replace a folder that was prepared with other settings.
        progress: wraps the scene indices of a split.

    Returns:
        False when `output` already holds exactly this data set and nothing was done.
    """

    def write(folder: Path) -> None:
        for split, num_scenes in (("train", settings.num_train), ("val", settings.num_val)):
            _write_split(folder, split, progress(range(num_scenes), split), settings)

    record = {"format_version": _FORMAT_VERSION, **asdict(settings)}
    return prepare_folder(output, record, write, overwrite=overwrite)


def _write_split(root: Path, split: str, indices: Iterable[int], settings: DigitsSettings) -> None:
    categories = load_categories("digits")
    material = load_material(split)
    for folder in (split, f"panoptic_{split}", f"semantic_{split}", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for index in indices:
        random = scene_random(settings.seed, split, index)
        drawn = draw_scene(sample_scene(material, size=settings.size, random=random), material)
        name = f"{index:06d}.png"
        panoptic_rgb_HW3, semantic_HW, segments_info = _panoptic_labels(drawn, categories)
        Image.fromarray(drawn.image).save(root / split / name)
        Image.fromarray(panoptic_rgb_HW3).save(root / f"panoptic_{split}" / name)
        Image.fromarray(semantic_HW).save(root / f"semantic_{split}" / name)
        images.append({"id": index, "file_name": name, "height": settings.size, "width": settings.size})
        panoptic.append({"image_id": index, "file_name": name, "segments_info": segments_info})
        for segment in drawn.segments:
            if segment.is_thing:
                instances.append(_instance_annotation(segment, categories, len(instances) + 1, index))
    annotations = root / "annotations"
    write_json(
        annotations / f"panoptic_{split}.json",
        {"images": images, "annotations": panoptic, "categories": [category.to_json() for category in categories]},
    )
    things = [{"id": category.id, "name": category.name} for category in categories if category.is_thing]
    write_json(
        annotations / f"instances_{split}.json", {"images": images, "annotations": instances, "categories": things}
    )


def _panoptic_labels(
    drawn: DrawnScene, categories: list[Category]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[dict[str, Any]]]:
    """The panoptic picture, the semantic picture and `segments_info`."""
    size = drawn.image.shape[:2]
    ids_HW = np.zeros(size, dtype=np.int32)
    semantic_HW = np.full(size, VOID, dtype=np.uint8)
    segments_info = []
    times_seen = [0] * len(categories)
    for segment in drawn.segments:
        category = categories[segment.category]
        red, green, blue = category.rgb
        # The segment has the color of its class when the PNG is looked at; equal classes differ in the red channel.
        segment_id = (red + times_seen[segment.category]) + 256 * green + 65536 * blue
        times_seen[segment.category] += 1
        ids_HW[segment.mask] = segment_id
        semantic_HW[segment.mask] = segment.category
        info = {"id": segment_id, "category_id": category.id, "iscrowd": 0}
        segments_info.append({**info, "area": int(segment.mask.sum()), "bbox": box_xywh(segment.mask)})
    return id_to_rgb(ids_HW), semantic_HW, segments_info


def _instance_annotation(
    segment: Segment, categories: list[Category], annotation_id: int, image_id: int
) -> dict[str, Any]:
    # Whole discs as polygons and covered ones as RLE, so that readers meet both forms.
    polygon = mask_to_polygon(segment.mask) if segment.is_whole else None
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": categories[segment.category].id,
        "iscrowd": 0,
        "area": int(segment.mask.sum()),
        "bbox": box_xywh(segment.mask),
        "segmentation": encode_rle(segment.mask) if polygon is None else [polygon],
    }


def box_xywh(mask_HW: NDArray[np.bool_]) -> list[int]:
    """COCO's box of a mask that has pixels."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
