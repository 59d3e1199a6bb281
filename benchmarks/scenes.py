"""Pictures with labels in all forms, drawn from random numbers: a data set of real sizes for benchmarks."""

# (H, W) pixels of a picture.

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former.data.masks import encode_rle, id_to_rgb

NUM_STUFF = 6
Record = dict[str, Any]


class Scene(NamedTuple):
    """One picture: stuff in horizontal bands, on which objects lie."""

    image: NDArray[np.uint8]  # (H, W, 3)
    ids: NDArray[np.int32]  # (H, W), each band and object has one, from 1 on; bands come first
    polygons: list[list[float]]  # of the objects, x0, y0, x1, y1, ...


def draw_scene(seed: int, size: tuple[int, int], num_objects: int) -> Scene:
    random = np.random.default_rng(seed)
    height, width = size
    image = np.zeros((height, width, 3), dtype=np.float32)
    for cells in (4, 16, 64, 256):  # noise of several scales: a JPEG file about as large as that of a photograph
        noise = random.normal(size=(cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 60 / np.sqrt(cells)
    ids = np.repeat(1 + np.arange(height, dtype=np.int32) * NUM_STUFF // height, width).reshape(height, width)
    polygons = []
    for number in range(num_objects):
        corners = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radius = min(size) * random.uniform(0.03, 0.2) * random.uniform(0.8, 1.2, size=40)
        points = random.uniform(0, 1, size=2) * (width, height)
        outline = points + radius[:, None] * np.stack([np.cos(corners), np.sin(corners)], axis=1)
        outline = np.clip(outline, 0, (width, height))
        polygons.append(outline.round(2).ravel().tolist())
        cv2.fillPoly(ids, [outline.round().astype(np.int32)], 1 + NUM_STUFF + number)
        image[ids == 1 + NUM_STUFF + number] += random.normal(scale=40, size=3)
    return Scene(np.clip(image + 128, 0, 255).astype(np.uint8), ids, polygons)


def write_records(
    folder: Path, num_pictures: int, size: tuple[int, int], num_objects: int, *, num_classes: int, rle: bool = False
) -> list[Record]:
    """Write a JPEG and label PNGs for each picture; their records have every form of labels.

    Args:
        rle: annotations are run lengths instead of polygons.
    """
    records = []
    for number in range(num_pictures):
        scene = draw_scene(number, size, num_objects)
        stem = folder / f"{number:04d}"
        Image.fromarray(scene.image).save(f"{stem}.jpg", quality=90)
        # Things have the first half of the classes, stuff the last ones.
        class_of = np.arange(1 + NUM_STUFF + num_objects) * 7 % (num_classes // 2)
        class_of[1 : 1 + NUM_STUFF] = num_classes - NUM_STUFF + np.arange(NUM_STUFF)
        Image.fromarray(id_to_rgb(scene.ids * 1000)).save(f"{stem}_panoptic.png")
        Image.fromarray(class_of[scene.ids].astype(np.uint8)).save(f"{stem}_semantic.png")
        present = np.unique(scene.ids).tolist()
        shapes = [
            encode_rle(scene.ids == 1 + NUM_STUFF + index) if rle else [polygon]
            for index, polygon in enumerate(scene.polygons)
        ]
        records.append(
            {
                "file_name": f"{stem}.jpg",
                "image_id": number,
                "height": size[0],
                "width": size[1],
                "pan_seg_file_name": f"{stem}_panoptic.png",
                "sem_seg_file_name": f"{stem}_semantic.png",
                "segments_info": [
                    {
                        "id": 1000 * index,
                        "category_id": int(class_of[index]),
                        "iscrowd": 0,
                        "isthing": index > NUM_STUFF,
                    }
                    for index in present
                ],
                "annotations": [
                    {
                        "category_id": int(class_of[1 + NUM_STUFF + index]),
                        "iscrowd": 0,
                        "segmentation": shape,
                    }
                    for index, shape in enumerate(shapes)
                ],
            }
        )
    return records
