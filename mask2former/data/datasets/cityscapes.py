"""Cityscapes in its official layout: pictures and labels lie in one folder per city and begin with the same name.

Detectron2's loaders are not used. They find labels by cutting and replacing text in whole paths, which fails for roots
with a dot in them, and they cut polygons out of each other with shapely, which we do not need elsewhere.
"""

# H, W pixels of a picture.

from __future__ import annotations

import logging
import os
from typing import Any, NamedTuple

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mask2former.data.datasets.annotation_files import Record, complaints_name, contiguous_segments, damaged, read_json
from mask2former.processes import map_in_processes, num_cores

logger = logging.getLogger(__name__)

_IMAGE_SUFFIX = "_leftImg8bit.png"
_CLASS_MAP_SUFFIX = "_gtFine_labelTrainIds.png"
_POLYGON_SUFFIX = "_gtFine_polygons.json"
# The official script does not draw what has no valid label id: the pixels of a license plate stay with the car.
_NOT_DRAWN = "license plate"
_GROUP = "group"  # "persongroup": several that the annotators did not tell apart
_CLASS_OF_INSTANCES = {
    category["name"]: index
    for index, category in enumerate(category for category in CITYSCAPES_CATEGORIES if category["isthing"])
}
# Below this number of pictures for each, another process costs more than it saves.
_PICTURES_PER_PROCESS = 50


class _Picture(NamedTuple):
    city: str
    stem: str  # what the names of the picture and of its labels begin with
    path: str

    def label(self, gt_dir: str, suffix: str) -> str:
        return os.path.join(gt_dir, self.city, self.stem + suffix)


def load_cityscapes_semantic(image_dir: str, gt_dir: str) -> list[Record]:
    """One record for each picture, with its map of train ids."""
    return [
        {"file_name": picture.path, "sem_seg_file_name": picture.label(gt_dir, _CLASS_MAP_SUFFIX)}
        for picture in _find_pictures(image_dir)
    ]


def load_cityscapes_panoptic(metadata: Metadata) -> list[Record]:
    """One record for each annotation of the panoptic JSON that the official script writes."""
    path = metadata.panoptic_json
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    pictures = {picture.stem: picture for picture in _find_pictures(metadata.image_root)}
    content = read_json(path)
    records = []
    with complaints_name(path):
        for annotation in content["annotations"]:
            picture = pictures.get(annotation["image_id"])
            if picture is None:
                raise FileNotFoundError(
                    f"{path} lists {annotation['image_id']!r}, but {metadata.image_root} has no "
                    f"<city>/{annotation['image_id']}{_IMAGE_SUFFIX}"
                )
            records.append(
                {
                    "file_name": picture.path,
                    "image_id": annotation["image_id"],
                    "sem_seg_file_name": picture.label(metadata.gt_dir, _CLASS_MAP_SUFFIX),
                    "pan_seg_file_name": os.path.join(metadata.panoptic_root, annotation["file_name"]),
                    "segments_info": contiguous_segments(annotation, things, stuff, path),
                }
            )
    return records


def load_cityscapes_instances(image_dir: str, gt_dir: str) -> list[Record]:
    """One record for each picture, with an annotation for each instance that can be seen.

    Masks are run lengths of exactly the pixels that the official script draws and the official evaluation judges.
    Detectron2 made polygons that imitate these pixels, without holes.
    """
    pictures = _find_pictures(image_dir)
    jobs = [(picture.path, picture.label(gt_dir, _POLYGON_SUFFIX)) for picture in pictures]
    # Every rank of a training run needs all records, and all of them draw at the same time.
    num_processes = min(num_cores() // comm.get_world_size(), len(jobs) // _PICTURES_PER_PROCESS)
    # Nothing is shown where stderr is no terminal.
    is_hidden = None if comm.is_main_process() else True
    progress = {"total": len(jobs), "desc": f"instances of {image_dir}", "disable": is_hidden}
    if num_processes > 1:
        logger.info("Drawing the instances of %d pictures in %d processes", len(jobs), num_processes)
    return list(tqdm(map_in_processes(_read_instances, jobs, num_processes, from_copies=True), **progress))


def _find_pictures(image_dir: str) -> list[_Picture]:
    """All pictures of all cities, in the order of their paths."""
    return [
        _Picture(city, name.removesuffix(_IMAGE_SUFFIX), os.path.join(image_dir, city, name))
        for city in sorted(PathManager.ls(image_dir))
        if PathManager.isdir(os.path.join(image_dir, city))
        for name in sorted(PathManager.ls(os.path.join(image_dir, city)))
        if name.endswith(_IMAGE_SUFFIX)
    ]


def _read_instances(job: tuple[str, str]) -> Record:
    file_name, json_file = job
    content = read_json(json_file)
    with complaints_name(json_file):
        size = content["imgHeight"], content["imgWidth"]
        objects = [entry for entry in content["objects"] if _is_drawn(entry)]
        annotations = []
        for entry, rle in zip(objects, _run_lengths(_draw(objects, size, json_file), len(objects)), strict=True):
            name = entry["label"].removesuffix(_GROUP)
            if rle is not None and name in _CLASS_OF_INSTANCES:
                annotations.append(
                    {
                        "iscrowd": int(name != entry["label"]),
                        "category_id": _CLASS_OF_INSTANCES[name],
                        "bbox": coco_mask.toBbox(rle).tolist(),
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "segmentation": rle,
                    }
                )
    record = {"file_name": file_name, "image_id": os.path.basename(file_name), "annotations": annotations}
    return {**record, "height": size[0], "width": size[1]}


def _is_drawn(entry: dict[str, Any]) -> bool:
    return not entry.get("deleted") and entry["label"].removesuffix(_GROUP) != _NOT_DRAWN


def _draw(objects: list[dict[str, Any]], size: tuple[int, int], json_file: str) -> NDArray[np.int32]:
    """(H, W): which object is seen at a pixel, 1 for the first, 0 for none; later objects cover earlier ones."""
    height, width = size
    picture = Image.new("I", (width, height), 0)
    pen = ImageDraw.Draw(picture)
    for number, entry in enumerate(objects, start=1):
        points = [(x, y) for x, y in entry["polygon"]]
        if len(points) < 2:
            raise damaged(json_file, f"an outline of {entry['label']!r} has {len(points)} points")
        pen.polygon(points, fill=number)
    drawn_HW: NDArray[np.int32] = np.asarray(picture, dtype=np.int32)
    return drawn_HW


def _run_lengths(objects_HW: NDArray[np.int32], num_objects: int) -> list[dict[str, Any] | None]:
    """COCO's compressed run lengths of the masks `objects_HW == 1`, `== 2`, ...; None for an empty one.

    One pass over the pixels for all objects: Cityscapes has a hundred of them in two million pixels.
    """
    columns = objects_HW.T.ravel()  # COCO counts down the columns
    starts = np.flatnonzero(np.concatenate(([True], columns[1:] != columns[:-1])))
    ends = np.append(starts[1:], columns.size)
    owners = columns[starts]
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(1, num_objects + 2))
    height, width = objects_HW.shape
    runs: list[dict[str, Any] | None] = []
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        mine = order[first:last]
        if not len(mine):
            runs.append(None)
            continue
        gaps = starts[mine] - np.concatenate(([0], ends[mine][:-1]))
        counts = np.stack([gaps, ends[mine] - starts[mine]], axis=1).ravel().tolist()
        if (rest := columns.size - int(ends[mine][-1])) > 0:
            counts.append(rest)
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        runs.append({"size": [height, width], "counts": rle["counts"].decode("ascii")})
    return runs
