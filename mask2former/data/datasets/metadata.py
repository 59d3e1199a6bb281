"""What is known of a registered name: its files, its classes and how it is evaluated."""

from __future__ import annotations

import os
import shlex
from typing import Any

from detectron2.data.catalog import Metadata

from mask2former.data.datasets.categories import Category
from mask2former.data.datasets.mapillary import read_class_file
from mask2former.data.datasets.splits import Split, Which, split_categories

# Panoptic ids as some of Detectron2's tools write them: 1000 * class + number of the instance.
_LABEL_DIVISOR = 1000


def datasets_root() -> str:
    """Where data sets lie: the environment variable DETECTRON2_DATASETS, else ./datasets."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))


class SplitMetadata(Metadata):  # type: ignore[misc]  # Detectron2 has no types
    """Metadata whose paths are put together when they are asked for, and whose class file is read only then.

    So importing the package reads no environment variable and no data set, and a change of DETECTRON2_DATASETS takes
    effect at once.
    """

    _split: Split
    _root: str | None

    @classmethod
    def of(cls, split: Split, root: str | None) -> SplitMetadata:
        """
        Args:
            root: folder of all data sets; None asks `datasets_root` each time a path is needed.
        """
        metadata = cls(name=split.name, _split=split, _root=root)
        metadata.set(evaluator_type=split.evaluator_type)
        if split.categories is not None:
            metadata.set(**class_entries(split, split_categories(split.categories), split.ignore_label))
        return metadata

    def __getattr__(self, key: str) -> Any:
        split = self.__dict__.get("_split")
        if split is None or key.startswith("_"):
            return super().__getattr__(key)
        if key in split.paths:
            path = split.paths[key]
            return None if path is None else os.path.join(self._datasets_root, path)
        if split.categories is None and key in _CLASS_ENTRIES:
            entries = self._read_class_entries()
            if key in entries:
                return entries[key]
        return super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        """All keys and values, paths included."""
        split = self._split
        plain = {key: value for key, value in self.__dict__.items() if not key.startswith("_")}
        late = self._read_class_entries() if split.categories is None else {}
        return {**plain, **late, **{key: getattr(self, key) for key in split.paths}}

    def preparation_command(self) -> str:
        """What to type so that the files come into being; empty where all of them are downloaded."""
        return self._split.preparation.format(root=shlex.quote(self._datasets_root))

    @property
    def _datasets_root(self) -> str:
        return self._root or datasets_root()

    def _read_class_entries(self) -> dict[str, Any]:
        categories, ignore_label = read_class_file(self.class_file)
        return class_entries(self._split, categories, ignore_label)


_CLASS_ENTRIES = {
    *("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"),
    *("stuff_classes", "stuff_colors", "stuff_dataset_id_to_contiguous_id"),
    *("ignore_label", "label_divisor"),
}


def class_entries(split: Split, categories: list[Category], ignore_label: int | None) -> dict[str, Any]:
    """The entries of `_CLASS_ENTRIES` that a split has; Detectron2's evaluators and visualizer read them.

    Colors are left out where the table lacks some.
    """
    entries: dict[str, Any] = {}
    for kind in ("thing", "stuff"):
        listed = _select(categories, getattr(split.lists, f"{kind}_classes"))
        with_ids = _select(categories, getattr(split.lists, f"{kind}_ids"))
        if listed:
            entries[f"{kind}_classes"] = [category.name for _, category in listed]
        if listed and all(category.color is not None for _, category in listed):
            entries[f"{kind}_colors"] = [list(category.rgb) for _, category in listed]
        if with_ids:
            entries[f"{kind}_dataset_id_to_contiguous_id"] = {category.id: index for index, category in with_ids}
    if ignore_label is not None:
        entries["ignore_label"] = ignore_label
    if split.form in ("panoptic", "cityscapes_panoptic"):
        entries["label_divisor"] = _LABEL_DIVISOR
    return entries


def _select(categories: list[Category], which: Which | None) -> list[tuple[int, Category]]:
    """The contiguous ids and the classes asked for, none for None."""
    wanted = {None: (), "all": (True, False), "things": (True,), "stuff": (False,)}[which]
    return [(index, category) for index, category in enumerate(categories) if category.is_thing in wanted]
