"""Category tables, kept as data files: `categories/<data set>.json` lists {id, name, isthing, color}."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple


class Category(NamedTuple):
    """One class; its place in the table is its contiguous id."""

    id: int  # as annotation files of the data set write it
    name: str
    is_thing: bool
    color: tuple[int, int, int]  # RGB

    def to_json(self) -> dict[str, Any]:
        """The entry of a COCO panoptic file's `categories`."""
        return {"id": self.id, "name": self.name, "isthing": int(self.is_thing), "color": list(self.color)}


@cache
def load_categories(name: str) -> list[Category]:
    """The table `categories/<name>.json`, in contiguous order."""
    text = (resources.files(__package__) / "categories" / f"{name}.json").read_text(encoding="utf-8")
    return [Category(c["id"], c["name"], bool(c["isthing"]), tuple(c["color"])) for c in json.loads(text)]
