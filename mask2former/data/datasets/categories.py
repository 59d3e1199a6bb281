"""Category tables, kept as data files: `categories/<data set>.json` lists {id, name, isthing, color, key}.

Colors are left out where a data set has none, `key` where annotations of the data set have nothing beside the id.
"""

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
    color: tuple[int, int, int] | None  # RGB
    key: int | str | None = None  # in the data set's own index of classes: ADE20K's number, Mapillary's `name`

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The color, of a table that has colors."""
        if self.color is None:
            raise ValueError(f"category {self.name!r} has no color in its table")
        return self.color

    def to_json(self) -> dict[str, Any]:
        """The entry of a COCO file's `categories`."""
        color = {} if self.color is None else {"color": list(self.color)}
        return {"id": self.id, "name": self.name, "isthing": int(self.is_thing), **color}


@cache
def load_categories(name: str) -> list[Category]:
    """The table `categories/<name>.json`, in contiguous order."""
    return [
        Category(
            id=entry["id"],
            name=entry["name"],
            is_thing=bool(entry["isthing"]),
            color=tuple(entry["color"]) if "color" in entry else None,
            key=entry.get("key"),
        )
        for entry in _read(name)
    ]


@cache
def ade20k_instance_ids() -> list[tuple[int, int, int]]:
    """What ADE20K calls its 100 instance classes, as rows of (instance100, sceneparse150, full).

    The first is the red value of `annotations_instance` pictures (1..100), the second the value of semantic label
    pictures (1..150, so the id in our tables plus 1), the last the number in the index of the full data set. Three
    classes have two rows, because the full data set tells apart what the other two join.
    """
    return [(instance, scene, full) for instance, scene, full in _read("ade20k_instance_ids")]


@cache
def coco_to_youtube_vis() -> dict[str, list[str]]:
    """The names that classes of COCO have in YouTube-VIS of 2019 or 2021; classes that it lacks are left out."""
    names: dict[str, list[str]] = _read("coco_to_youtube_vis")
    return names


def _read(name: str) -> Any:
    text = (resources.files(__package__) / "categories" / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)
