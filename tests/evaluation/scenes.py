"""Random panoptic scenes in the formats of COCO and Cityscapes, and results of a model that is nearly right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask2former.data.masks import id_to_rgb
from mask2former.modeling.postprocessing import tight_boxes

SIZE = (90, 120)


class Category(NamedTuple):
    id: int
    name: str
    is_thing: bool


#: As in ADE20K and Mapillary: things and stuff in turns, ids of the dataset that are no contiguous ids.
CATEGORIES = [
    Category(7, "wall", False),
    Category(10, "chair", True),
    Category(11, "floor", False),
    Category(20, "lamp", True),
]
IGNORED = 255


class Scene(NamedTuple):
    name: str
    ids: np.ndarray  # (H, W), 0 = void
    segments: list[dict]  # id, contiguous category_id, isthing, iscrowd


def make_scenes(seed: int, count: int = 4, categories: list[Category] = CATEGORIES) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [_make_scene(f"town_{number:06}_{seed:06}", rng, categories) for number in range(count)]


def _make_scene(name: str, rng: np.random.Generator, categories: list[Category]) -> Scene:
    stuff = [index for index, category in enumerate(categories) if not category.is_thing]
    things = [index for index, category in enumerate(categories) if category.is_thing]
    ids = np.zeros(SIZE, dtype=np.int32)
    top, bottom = rng.choice(stuff, 2, replace=False)
    ids[5 : SIZE[0] // 2], ids[SIZE[0] // 2 :] = 1, 2
    classes = {1: int(top), 2: int(bottom)}
    for segment_id in range(3, 8):
        y, x = rng.integers(0, SIZE[0] - 30), rng.integers(0, SIZE[1] - 30)
        height, width = rng.integers(10, 40, 2)
        ids[y : y + height, x : x + width] = 1000 * segment_id  # more than one byte of the picture
        classes[1000 * segment_id] = int(rng.choice(things))
    present = set(np.unique(ids).tolist())
    segments = [
        {"id": key, "category_id": index, "isthing": categories[index].is_thing, "iscrowd": int(key == 7000)}
        for key, index in classes.items()
        if key in present
    ]
    return Scene(name, ids, segments)


def nearly_right(scene: Scene, seed: int, categories: list[Category] = CATEGORIES) -> Scene:
    """Shifted by some pixels, with one segment of another class and one forgotten."""
    rng = np.random.default_rng(seed)
    segments = [dict(segment) for segment in scene.segments]
    ids = np.roll(scene.ids, rng.integers(0, 5, 2), (0, 1))
    forgotten = segments.pop(rng.integers(len(segments)))
    ids[ids == forgotten["id"]] = 0
    wrong = segments[rng.integers(len(segments))]
    same_kind = [index for index, category in enumerate(categories) if category.is_thing == wrong["isthing"]]
    wrong["category_id"] = int(rng.choice(same_kind))
    return Scene(scene.name, ids, segments)


def output_of(scene: Scene, num_classes: int = len(CATEGORIES)) -> dict:
    """A scene as the model would answer."""
    semantic = torch.full((num_classes, *SIZE), 0.1)
    for segment in scene.segments:
        semantic[segment["category_id"], torch.from_numpy(scene.ids == segment["id"])] = 1
    things = [segment for segment in scene.segments if segment["isthing"] and not segment["iscrowd"]]
    masks = torch.from_numpy(np.stack([scene.ids == segment["id"] for segment in things]))
    instances = Instances(SIZE, pred_masks=masks, pred_boxes=Boxes(tight_boxes(masks)))
    instances.scores = torch.linspace(0.9, 0.5, len(things))
    instances.pred_classes = torch.tensor([segment["category_id"] for segment in things])
    found = [{key: segment[key] for key in ("id", "category_id", "isthing")} for segment in scene.segments]
    return {"sem_seg": semantic, "instances": instances, "panoptic_seg": (torch.from_numpy(scene.ids), found)}


def inputs_of(scene: Scene) -> dict:
    return {"file_name": f"{scene.name}_leftImg8bit.png", "image_id": scene.name}


def register(name: str, records: list[dict], **metadata: object) -> str:
    """Puts a dataset into Detectron2's catalogs, or another in its place."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**metadata)
    return name


def write_panoptic(
    folder: Path, scenes: list[Scene], categories: list[Category] = CATEGORIES, suffix: str = ""
) -> dict[str, str]:
    """A COCO panoptic file and its pictures; returns the paths under the names of metadata."""
    pictures = folder / "panoptic"
    pictures.mkdir(parents=True, exist_ok=True)
    annotations = []
    for scene in scenes:
        file_name = f"{scene.name}{suffix}.png"
        Image.fromarray(id_to_rgb(scene.ids)).save(pictures / file_name)
        segments = [
            {
                "id": segment["id"],
                "category_id": categories[segment["category_id"]].id,
                "iscrowd": segment["iscrowd"],
                "area": int((scene.ids == segment["id"]).sum()),
            }
            for segment in scene.segments
        ]
        annotations.append({"image_id": scene.name, "file_name": file_name, "segments_info": segments})
    content = {
        "annotations": annotations,
        "categories": [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in categories],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    return {"panoptic_root": str(pictures), "panoptic_json": str(folder / "panoptic.json")}


def class_map(scene: Scene) -> np.ndarray:
    """(H, W) contiguous classes, IGNORED where there is no segment."""
    labels = np.full(SIZE, IGNORED, dtype=np.uint8)
    for segment in scene.segments:
        labels[scene.ids == segment["id"]] = segment["category_id"]
    return labels


def register_scenes(name: str, folder: Path, scenes: list[Scene]) -> str:
    """A dataset with the metadata of ADE20K's and Mapillary's panoptic names (`json_file` None, as of the latter)."""
    records = []
    for scene in scenes:
        label_file = folder / f"{scene.name}_labels.png"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(class_map(scene)).save(label_file)
        records.append({**inputs_of(scene), "sem_seg_file_name": str(label_file)})
    return register(
        name,
        records,
        **write_panoptic(folder, scenes),
        json_file=None,
        ignore_label=IGNORED,
        evaluator_type="mapillary_vistas_panoptic_seg",
        thing_classes=[category.name for category in CATEGORIES],
        stuff_classes=[category.name for category in CATEGORIES],
        thing_dataset_id_to_contiguous_id={c.id: index for index, c in enumerate(CATEGORIES) if c.is_thing},
        stuff_dataset_id_to_contiguous_id={c.id: index for index, c in enumerate(CATEGORIES)},
    )


def run(evaluator: object, scenes: list[Scene], predictions: list[Scene], num_classes: int = len(CATEGORIES)) -> object:
    """What an evaluator says of predictions, one image at a time."""
    evaluator.reset()
    for scene, prediction in zip(scenes, predictions, strict=True):
        evaluator.process([inputs_of(scene)], [output_of(prediction, num_classes)])
    return evaluator.evaluate()
