"""The records of registered data sets that are used together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations

from mask2former.data.datasets.loaders import Record, require_files

__all__ = ["load_datasets", "load_records", "objects_of"]

_MAX_NAMED = 5  # classes in a message


def load_records(names: Sequence[str], *, config_key: str, filter_empty: bool = False) -> list[Record]:
    """The records of registered data sets, one after another.

    Args:
        config_key: where the names come from, for messages.
        filter_empty: leave out pictures that have nothing but crowd annotations.

    Raises:
        ValueError: no names, an unknown name, data sets with different classes, or no pictures.
        FileNotFoundError: files are missing; the message shows the expected tree.
    """
    datasets = load_datasets(names, config_key=config_key, filter_empty=filter_empty)
    return [record for records in datasets for record in records]


def load_datasets(names: Sequence[str], *, config_key: str, filter_empty: bool = False) -> list[list[Record]]:
    """As `load_records`, one list for each data set; of several some may be empty after filtering."""
    if not names:
        raise ValueError(f"{config_key} is empty; name at least one data set")
    known = DatasetCatalog.list()
    datasets: list[list[Record]] = []
    for name in names:
        if name not in known:
            raise ValueError(f"{config_key}: data set {name!r} is not registered; known are {', '.join(sorted(known))}")
        require_files(name)
        found = DatasetCatalog.get(name)
        if not found:
            raise ValueError(f"{config_key}: data set {name!r} has no pictures")
        datasets.append(_with_objects(found) if filter_empty and "annotations" in found[0] else found)
    for name in names[1:]:
        _require_same_classes(names[0], name, config_key)
    if not any(datasets):
        raise ValueError(
            f"{config_key}: no picture of {', '.join(names)} has an annotation "
            "(DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves out those without)"
        )
    return datasets


def _require_same_classes(first: str, other: str, config_key: str) -> None:
    for key in ("thing_classes", "stuff_classes"):
        tables = [list(MetadataCatalog.get(name).get(key) or ()) for name in (first, other)]
        if tables[0] == tables[1]:
            continue
        differences = []
        for name, table, another in ((first, *tables), (other, *tables[::-1])):
            only = [label for label in table if label not in another]
            more = ", ..." if len(only) > _MAX_NAMED else ""
            differences += [f"only {name} has {', '.join(only[:_MAX_NAMED])}{more}"] if only else []
        raise ValueError(
            f"{config_key}: {first}, {other} differ in {key}, so they cannot be used together: "
            f"{'; '.join(differences) or 'their order is another'}"
        )


def _with_objects(records: list[Record]) -> list[Record]:
    """The pictures or videos that have more than crowds."""
    if "file_names" not in records[0]:
        kept: list[Record] = filter_images_with_only_crowd_annotations(records)
        return kept
    return [video for video in records if any(not entry.get("iscrowd", 0) for entry in objects_of(video))]


def objects_of(record: Record) -> list[Record]:
    """The annotations of a picture, or of all frames of a video."""
    annotations: list[Any] = record["annotations"]
    return [entry for frame in annotations for entry in frame] if "file_names" in record else annotations
