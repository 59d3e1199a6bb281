"""COCO semantic labels from its panoptic labels: class 0..132 per pixel, 255 where no segment is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from numpy.typing import NDArray

from mask2former.data.masks import rgb_to_id
from mask2former.data.preparation.common import require_inputs, save_picture
from mask2former.data.preparation.jobs import FileJob, Outcome, make_files, total
from mask2former.data.reading import read_panoptic_ids

VOID = 255
_TREE = """  {folder}/annotations/panoptic_{{train,val}}2017.json
  {folder}/panoptic_{{train,val}}2017/*.png"""
_ORIGIN = "panoptic_annotations_trainval2017.zip of COCO, which has further archives for the pictures inside"
_CLASS_OF_CATEGORY: dict[int, int] = {category["id"]: index for index, category in enumerate(COCO_CATEGORIES)}


@dataclass(frozen=True)
class _SemanticJob(FileJob):
    segments: dict[int, int]  # segment id -> class 0..132


def prepare_coco_semantic(
    root: Path, *, splits: tuple[str, ...] = ("train", "val"), num_workers: int | None = None
) -> Outcome:
    """Writes coco/panoptic_semseg_{split}2017/*.png from coco/panoptic_{split}2017 and its JSON file."""
    folder = root / "coco"
    pictures = {split: folder / f"panoptic_{split}2017" for split in splits}
    json_files = {split: folder / "annotations" / f"panoptic_{split}2017.json" for split in splits}
    require_inputs([*json_files.values(), *pictures.values()], tree=_TREE.format(folder=folder), origin=_ORIGIN)
    return total(
        make_files(
            _join_segments,
            _read_jobs(json_files[split], pictures[split], folder / f"panoptic_semseg_{split}2017"),
            description=f"COCO {split} semantic",
            num_workers=num_workers,
        )
        for split in splits
    )


def _read_jobs(json_path: Path, pictures: Path, target: Path) -> list[_SemanticJob]:
    try:
        jobs = [
            _SemanticJob(
                pictures / annotation["file_name"],
                target / annotation["file_name"],
                {segment["id"]: _CLASS_OF_CATEGORY[segment["category_id"]] for segment in annotation["segments_info"]},
            )
            for annotation in json.loads(json_path.read_bytes())["annotations"]
        ]
        strange = next((number for job in jobs for number in job.segments if not 0 < number < 1 << 24), None)
        if strange is not None:
            raise ValueError(f"segment id {strange} is no color R + 256 G + 65536 B")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{json_path} is cut off or no panoptic file of COCO: {type(error).__name__} {error}; its segments must "
            "have the 133 categories of COCO panoptic"
        ) from error
    present = {path.name for path in pictures.iterdir()}
    missing = next((job.source for job in jobs if job.source.name not in present), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing} does not exist, but {json_path} lists it: unpack {pictures.name}.zip again")
    return jobs


def _join_segments(job: _SemanticJob) -> None:
    ids_HW = rgb_to_id(read_panoptic_ids(str(job.source)))
    save_picture(job.target, look_up(ids_HW, job.segments))


def look_up(ids_HW: NDArray[np.int32], classes: dict[int, int]) -> NDArray[np.uint8]:
    """Replaces every id by its class, all others by 255."""
    known = np.array(sorted(classes), dtype=np.int32)
    # One place more than there are ids: where ids larger than all known ones end up.
    values = np.array([*(classes[identifier] for identifier in known.tolist()), VOID], dtype=np.uint8)
    places_HW = np.searchsorted(known, ids_HW)
    is_known_HW = np.array([*known, -1], dtype=np.int32)[places_HW] == ids_HW
    result_HW: NDArray[np.uint8] = np.where(is_known_HW, values[places_HW], np.uint8(VOID))
    return result_HW
