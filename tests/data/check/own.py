"""Data sets that tests register themselves, and what a check says of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data.check import CheckedDataset


@contextmanager
def registered(name: str, records: list[dict], **metadata: object) -> Iterator[str]:
    """A data set in Detectron2's catalogs, for a while."""
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**metadata)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def problems(checked: CheckedDataset) -> dict[str, tuple[int, list[str]]]:
    """Name of the kind -> count and examples."""
    return {kind.name: (total.count, total.examples) for kind, total in checked.tally.problems.items()}
