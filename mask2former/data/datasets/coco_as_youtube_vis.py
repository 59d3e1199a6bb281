"""COCO's pictures with the classes of YouTube-VIS, so that both can train one model of videos.

Which class of COCO is which of YouTube-VIS says categories/coco_to_youtube_vis.json: 19 classes for 2019, 21 for 2021.
Not every equal name is an equal thing: COCO's mouse is a computer's, that of YouTube-VIS an animal.
"""

from __future__ import annotations

from typing import Any

from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from mask2former.data.datasets.annotation_files import Record
from mask2former.data.datasets.categories import coco_to_youtube_vis

__all__ = ["load_coco_as_youtube_vis"]


def load_coco_as_youtube_vis(metadata: Metadata) -> list[Record]:
    """The records of a COCO instance file with contiguous classes of `metadata.thing_classes`.

    Objects of other classes are left out, and so are pictures that have none left: what is not labeled in them would
    count as background.
    """
    contiguous = {name: place for place, name in enumerate(metadata.thing_classes)}
    class_of_id = {
        category["id"]: contiguous[name]
        for category in COCO_CATEGORIES
        for name in coco_to_youtube_vis().get(category["name"], ())
        if name in contiguous
    }
    records: list[Record] = load_coco_json(metadata.json_file, metadata.image_root)
    renamed = [{**record, "annotations": _renamed(record["annotations"], class_of_id)} for record in records]
    return [record for record in renamed if record["annotations"]]


def _renamed(annotations: list[dict[str, Any]], class_of_id: dict[int, int]) -> list[dict[str, Any]]:
    return [
        {**entry, "category_id": class_of_id[entry["category_id"]]}
        for entry in annotations
        if entry["category_id"] in class_of_id
    ]
