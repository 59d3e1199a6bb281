"""ADE20K panoptic labels: stuff of annotations/ under instances of annotations_instance/, in COCO's format.

Three things differ from the original script. Segment ids of a picture depend on its name only, so two runs agree
(they were random). `area` and `bbox` describe what can be seen in the finished map: stuff does not count the pixels
that things cover, and stuff that is covered completely is left out. And the JSON file lists `images` with their sizes,
as COCO's files do.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.datasets.categories import Category, load_categories
from mask2former.data.masks import id_to_rgb
from mask2former.data.preparation.ade20k import SPLITS, VOID, ade20k_folder, read_instances, read_semantic
from mask2former.data.preparation.common import boxes_xywh, list_files, save_picture
from mask2former.data.preparation.jobs import FileJob, Outcome, total
from mask2former.data.preparation.records import Record, make_files_and_json
from mask2former.data.reading import check_size

_COLOR_DISTANCE = 30  # by which the channels of further segments of a class differ from its color, at most


@dataclass(frozen=True)
class _PanopticJob(FileJob):
    instances: Path  # the picture of annotations_instance/; `source` is that of annotations/


def prepare_ade20k_panoptic(
    root: Path, *, splits: tuple[str, ...] = ("train", "val"), num_workers: int | None = None
) -> Outcome:
    """Writes ade20k_panoptic_{split}/*.png (id = R + 256 G + 65536 B, 0 = void) and ade20k_panoptic_{split}.json."""
    folder = ade20k_folder(root, ("annotations", "annotations_instance"), splits)
    outcomes = []
    for split in splits:
        target = folder / f"ade20k_panoptic_{split}"
        jobs = [
            _PanopticJob(source, target / source.name, folder / "annotations_instance" / SPLITS[split] / source.name)
            for source in list_files(folder / "annotations" / SPLITS[split], ".png")
        ]
        json_path = target.with_suffix(".json")
        outcomes.append(make_files_and_json(_join_labels, jobs, json_path, _assemble, num_workers=num_workers))
    return total(outcomes)


def _join_labels(job: _PanopticJob) -> Record:
    """Writes the panoptic picture and returns its entry and its annotation."""
    classes_HW = read_semantic(job.source)
    instances_HW, class_of_instance = read_instances(job.instances)
    check_size(str(job.instances), instances_HW.shape, classes_HW.shape, str(job.source))
    categories = load_categories("ade20k_150")
    # Segments count from 1: first the stuff, then the things, which cover it. Pixels of thing classes that belong to
    # no instance stay 0, void.
    present = np.flatnonzero(np.bincount(classes_HW.ravel(), minlength=VOID + 1)).tolist()
    stuff = [label for label in present if label != VOID and not categories[label].is_thing]
    segment_of_class, segment_of_instance = np.zeros((2, VOID + 1), dtype=np.int32)
    segment_of_class[stuff] = np.arange(1, len(stuff) + 1)
    segment_of_instance[list(class_of_instance)] = np.arange(1, len(class_of_instance) + 1) + len(stuff)
    segments_HW = np.where(instances_HW > 0, segment_of_instance[instances_HW], segment_of_class[classes_HW])

    segment_classes = [*stuff, *class_of_instance.values()]
    ids = segment_ids(job.key, segment_classes, categories)
    save_picture(job.target, id_to_rgb(np.array([0, *ids], dtype=np.int32)[segments_HW]))
    areas = np.bincount(segments_HW.ravel(), minlength=len(ids) + 1)[1:].tolist()
    boxes = boxes_xywh(segments_HW, len(ids))
    segments_info = [
        {"id": segment_id, "category_id": categories[label].id, "area": area, "bbox": box, "iscrowd": 0}
        for segment_id, label, area, box in zip(ids, segment_classes, areas, boxes, strict=True)
        if area > 0
    ]
    height, width = classes_HW.shape
    return {
        "image": {"id": job.key, "file_name": f"{job.key}.jpg", "width": width, "height": height},
        "annotation": {"image_id": job.key, "file_name": job.target.name, "segments_info": segments_info},
    }


def segment_ids(picture: str, segment_classes: Iterable[int], categories: list[Category]) -> list[int]:
    """Ids for the segments of a picture: no two are equal, none is 0, and seen as RGB they resemble their class.

    The first segment of a class has the color of the class. Others have one near it, drawn from a generator that is
    seeded with the name of the picture.
    """
    random = np.random.default_rng(zlib.crc32(picture.encode()))
    stuff_colors = {category.rgb for category in categories if not category.is_thing}
    taken = {(0, 0, 0)}
    ids = []
    for label in segment_classes:
        category = categories[label]
        color = category.rgb
        # Colors of stuff are not for things, also where that stuff does not occur. Two classes of stuff share a color.
        while color in taken or (category.is_thing and color in stuff_colors):
            shift = random.integers(-_COLOR_DISTANCE, _COLOR_DISTANCE, size=3, endpoint=True)
            red, green, blue = np.clip(np.add(category.rgb, shift), 0, 255).tolist()
            color = (red, green, blue)
        taken.add(color)
        ids.append(color[0] + 256 * color[1] + 65536 * color[2])
    return ids


def _assemble(records: list[Record]) -> dict[str, Any]:
    return {
        "images": [record["image"] for record in records],
        "annotations": [record["annotation"] for record in records],
        "categories": [category.to_json() for category in load_categories("ade20k_150")],
    }
