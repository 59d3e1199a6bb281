"""Registers the splits of this package with Detectron2's catalogs."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from mask2former.data.datasets.categories import load_categories
from mask2former.data.datasets.loaders import load_split
from mask2former.data.datasets.splits import Split, all_splits, split_categories


class SplitMetadata(Metadata):  # type: ignore[misc]  # Detectron2 has no types
    """Metadata whose paths are put together when they are asked for.

    So importing the package reads no environment variable, and a change of DETECTRON2_DATASETS takes effect at once.
    """

    _relative_paths: dict[str, str]
    _root: str | None

    def __getattr__(self, key: str) -> Any:
        paths = self.__dict__.get("_relative_paths", {})
        if key not in paths:
            return super().__getattr__(key)
        return os.path.join(self.__dict__["_root"] or datasets_root(), paths[key])

    def as_dict(self) -> dict[str, Any]:
        """All keys and values, paths included."""
        plain = {key: value for key, value in self.__dict__.items() if not key.startswith("_")}
        return {**plain, **{key: getattr(self, key) for key in self.__dict__["_relative_paths"]}}


def datasets_root() -> str:
    """Where data sets lie: the environment variable DETECTRON2_DATASETS, else ./datasets."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def register_all(root: str | None = None) -> None:
    """Registers every split of the table. Calling it again is allowed, also with another root.

    Args:
        root: folder of all data sets; None asks `datasets_root` each time a path is needed.
    """
    for split in all_splits():
        is_ours = isinstance(MetadataCatalog.data.get(split.name), SplitMetadata)
        if split.name in DatasetCatalog.list():
            if not is_ours:
                continue  # somebody who registered the name before means his own files
            DatasetCatalog.remove(split.name)
        DatasetCatalog.register(split.name, partial(load_split, split))
        MetadataCatalog.data[split.name] = _metadata(split, root)
    _change_detectron2_names()


def _change_detectron2_names() -> None:
    """What the original changed in the metadata of names that Detectron2 registers; doing it again changes nothing."""
    every_coco_class = [category["name"] for category in COCO_CATEGORIES]
    coco_things = [category for category in COCO_CATEGORIES if category["isthing"]]
    for part in ("train", "val"):
        # Detectron2 lists all 133 classes as things. The evaluation of instances takes the list for its 80 classes, and
        # failed at its end.
        coco = vars(MetadataCatalog.get(f"coco_2017_{part}_panoptic"))
        if coco.get("thing_classes") == every_coco_class:
            coco["thing_classes"] = [category["name"] for category in coco_things]
            coco["thing_colors"] = [category["color"] for category in coco_things]
        ade20k = vars(MetadataCatalog.get(f"ade20k_sem_seg_{part}"))
        ade20k.setdefault("stuff_colors", [list(category.rgb) for category in load_categories("ade20k_150")])


def _metadata(split: Split, root: str | None) -> SplitMetadata:
    """The keys Detectron2's evaluators and visualizer read."""
    metadata = SplitMetadata(name=split.name, _relative_paths=split.paths, _root=root)
    categories = split_categories(split)
    things = [(index, category) for index, category in enumerate(categories) if category.is_thing]
    metadata.set(evaluator_type=split.evaluator_type)
    if split.form != "semantic":
        metadata.set(
            thing_classes=[category.name for _, category in things],
            thing_colors=[list(category.rgb) for _, category in things],
            thing_dataset_id_to_contiguous_id={category.id: index for index, category in things},
        )
    if split.form != "instance":
        # Things too: the semantic evaluator judges all classes, and pixels of things are labeled in the semantic PNGs.
        metadata.set(
            ignore_label=split.ignore_label,
            stuff_classes=[category.name for category in categories],
            stuff_colors=[list(category.rgb) for category in categories],
        )
    if split.form == "panoptic":
        identifiers = {category.id: index for index, category in enumerate(categories)}
        metadata.set(label_divisor=1000, stuff_dataset_id_to_contiguous_id=identifiers)
    return metadata
