"""A tiny Cityscapes in the real layout, and its evaluation in one of several processes."""

from __future__ import annotations

import mask2former  # noqa: F401  # isort: skip  (before Detectron2, which may need its help to import)

import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.evaluation import DatasetEvaluators
from PIL import Image

from mask2former.evaluation import build_evaluator
from tests.engine.tiny import tiny_config
from tests.evaluation.scenes import (
    IGNORED,
    Category,
    Scene,
    class_map,
    inputs_of,
    make_scenes,
    nearly_right,
    output_of,
    register,
    write_panoptic,
)

#: The 19 judged classes in the order of train ids.
STREET = [
    Category(entry["id"], entry["name"], bool(entry["isthing"]))
    for entry in sorted(CITYSCAPES_CATEGORIES, key=lambda entry: entry["trainId"])
]
SEED = 5


def register_street(name: str, root: Path, evaluator_type: str) -> tuple[str, list[Scene]]:
    """Writes the tree and registers it with the metadata of Detectron2's Cityscapes names."""
    scenes = make_scenes(SEED, categories=STREET)
    labels_folder = root / "gtFine" / "val"
    for scene in scenes:
        _write_labels(labels_folder / "town", scene)
    names = [category.name for category in STREET]
    metadata = {
        **write_panoptic(root / "gtFine" / "cityscapes_panoptic_val", scenes, STREET, "_gtFine_panoptic"),
        "gt_dir": str(labels_folder),
        "evaluator_type": evaluator_type,
        "ignore_label": IGNORED,
        "stuff_classes": names,
        "thing_classes": names,
        "thing_dataset_id_to_contiguous_id": {c.id: index for index, c in enumerate(STREET) if c.is_thing},
        "stuff_dataset_id_to_contiguous_id": {c.id: index for index, c in enumerate(STREET) if not c.is_thing},
    }
    return register(name, [inputs_of(scene) for scene in scenes], **metadata), scenes


def _write_labels(folder: Path, scene: Scene) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    classes = class_map(scene)
    ids = np.array([*(category.id for category in STREET), *[0] * (256 - len(STREET))], dtype=np.uint16)[classes]
    instances = ids.copy()
    for number, segment in enumerate(scene.segments):
        if segment["isthing"] and not segment["iscrowd"]:  # groups have the bare label, as stuff has
            area = scene.ids == segment["id"]
            instances[area] = 1000 * ids[area] + number
    Image.fromarray(ids.astype(np.uint8)).save(folder / f"{scene.name}_gtFine_labelIds.png")
    Image.fromarray(instances).save(folder / f"{scene.name}_gtFine_instanceIds.png")


def street_predictions(scenes: list[Scene]) -> list[Scene]:
    return [nearly_right(scene, seed, STREET) for seed, scene in enumerate(scenes)]


def evaluate_street(rank: int, num_ranks: int, folder: Path) -> None:
    """All three tasks; each rank has a part of the pictures, and a disk of its own. Figures go to results.json."""
    torch.set_num_threads(1)
    if num_ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=num_ranks)
    disk = folder / f"disk{rank}"
    dataset, scenes = register_street("street", disk / "cityscapes", "cityscapes_panoptic_seg")
    evaluator = build_evaluator(tiny_config(disk / "output", INPUT__FORMAT="RGB"), dataset)
    assert isinstance(evaluator, DatasetEvaluators)
    evaluator.reset()
    pairs = list(zip(scenes, street_predictions(scenes), strict=True))
    for scene, prediction in pairs[rank::num_ranks]:
        evaluator.process([inputs_of(scene)], [output_of(prediction, len(STREET))])
    results = evaluator.evaluate()
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    else:
        assert not results and not list((disk / "output").rglob("*.*")), "only rank 0 judges and writes"
    if num_ranks > 1:
        dist.destroy_process_group()
