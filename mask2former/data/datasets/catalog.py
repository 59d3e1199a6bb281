"""Registers the splits of this package with Detectron2's catalogs."""

from __future__ import annotations

import os
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

from mask2former.data.datasets.loaders import load_split
from mask2former.data.datasets.metadata import SplitMetadata, datasets_root
from mask2former.data.datasets.splits import Split, all_splits


def register_all(root: str | os.PathLike[str] | None = None) -> None:
    """Registers every split of the table. Calling it again is allowed, also with another root.

    A name that somebody else registered before stays his: he means his own files. Detectron2's own registration of a
    name is replaced as long as nobody has touched it.

    Args:
        root: folder of all data sets; None asks `datasets_root` each time a path is needed.
    """
    for split in all_splits():
        if split.name in DatasetCatalog.list():
            if find_split(split.name) is None and not _is_untouched(split):
                continue
            DatasetCatalog.remove(split.name)
        DatasetCatalog.register(split.name, partial(load_split, split))
        MetadataCatalog.data[split.name] = SplitMetadata.of(split, None if root is None else os.path.expanduser(root))


def find_split(name: str) -> Split | None:
    """The split that a registered name stands for; None when somebody else has registered it."""
    load = DatasetCatalog.data[name]
    is_ours = isinstance(load, partial) and load.func is load_split
    return load.args[0] if is_ours else None


def _is_untouched(split: Split) -> bool:
    """Whether Detectron2 has registered a name while it was imported, for the paths of our table."""
    # Not every callable has the name of its module: that of a method of a list is None.
    if not (DatasetCatalog.data[split.name].__module__ or "").startswith("detectron2."):
        return False
    root = os.path.expanduser(getattr(builtin, "_root", datasets_root()))
    metadata = MetadataCatalog.get(split.name)
    # Somebody may have called Detectron2's function again, for his own folders.
    registered = {key: metadata.get(key) for key in split.paths if metadata.get(key) is not None}
    return all(
        os.path.normpath(os.path.expanduser(path)) == os.path.normpath(os.path.join(root, split.paths[key] or ""))
        for key, path in registered.items()
    )
