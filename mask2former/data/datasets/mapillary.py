"""The classes of Mapillary Vistas as a release itself lists them: `config_v2.0.json` is the only list of release 2.0.

`labels` of that file is a list of {name, readable, color, instances, evaluate}; the place of an entry is its value in
label pictures, and place + 1 its id in the panoptic JSON, as in release 1.2.
"""

from __future__ import annotations

from functools import lru_cache

from mask2former.data.datasets.annotation_files import complaints_name, damaged, read_json
from mask2former.data.datasets.categories import Category

_UNLABELED = "void--unlabeled"


@lru_cache
def read_class_file(path: str) -> tuple[list[Category], int]:
    """The classes in the order of label values, and the value that stands for "no label".

    "No label" is the last entry of the published files and then no class, like in release 1.2. All other entries are
    classes whatever their `evaluate` says, because a label picture shows places in this list.
    """
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} does not exist. The classes of Mapillary Vistas are read from this file of the release (the root "
            "of all data sets is the environment variable DETECTRON2_DATASETS, default: ./datasets)"
        ) from error
    with complaints_name(path):
        categories = [
            Category(place + 1, label["readable"], bool(label["instances"]), tuple(label["color"]), label["name"])
            for place, label in enumerate(content["labels"])
        ]
    keys = [category.key for category in categories]
    if keys.count(_UNLABELED) != 1:
        raise damaged(path, f"its labels have {keys.count(_UNLABELED)} entries named {_UNLABELED!r} instead of one")
    ignore_label = keys.index(_UNLABELED)
    if ignore_label == len(categories) - 1:
        categories.pop()
    return categories, ignore_label
