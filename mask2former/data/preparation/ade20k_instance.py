"""ADE20K instances: annotations_instance/ -> ade20k_instance_{train,val}.json in COCO's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.datasets.categories import load_categories
from mask2former.data.masks import encode_rle
from mask2former.data.preparation.ade20k import SPLITS, ade20k_folder, read_instances
from mask2former.data.preparation.common import boxes_xywh, list_files
from mask2former.data.preparation.jobs import Outcome, PictureJob, total
from mask2former.data.preparation.records import Record, make_files_and_json


def prepare_ade20k_instance(
    root: Path, *, splits: tuple[str, ...] = ("train", "val"), num_workers: int | None = None
) -> Outcome:
    """Writes ade20k_instance_{split}.json: ids of pictures are their stems, categories the 100 things among 0..149."""
    folder = ade20k_folder(root, ("annotations_instance",), splits)
    return total(
        make_files_and_json(
            _describe,
            [PictureJob(source) for source in list_files(folder / "annotations_instance" / SPLITS[split], ".png")],
            folder / f"ade20k_instance_{split}.json",
            _assemble,
            num_workers=num_workers,
        )
        for split in splits
    )


def _describe(job: PictureJob) -> Record:
    """The picture's entry and its annotations, which get their ids when all pictures are known."""
    instances_HW, classes = read_instances(job.source)
    height, width = instances_HW.shape
    image = {"id": job.key, "file_name": f"{job.key}.jpg", "width": width, "height": height}
    boxes = boxes_xywh(instances_HW, max(classes, default=0))
    columns_HW = np.asfortranarray(instances_HW)  # the order in which run lengths are counted
    annotations = []
    for instance, category in classes.items():
        mask_HW = columns_HW == instance
        annotations.append(
            {
                "image_id": job.key,
                "category_id": category,
                "iscrowd": 0,
                "bbox": boxes[instance - 1],
                "segmentation": encode_rle(mask_HW),
                "area": int(np.count_nonzero(mask_HW)),
            }
        )
    return {"image": image, "annotations": annotations}


def _assemble(records: list[Record]) -> dict[str, Any]:
    annotations = [annotation for record in records for annotation in record["annotations"]]
    return {
        "images": [record["image"] for record in records],
        "categories": [{"id": c.id, "name": c.name} for c in load_categories("ade20k_instance_100")],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
    }
