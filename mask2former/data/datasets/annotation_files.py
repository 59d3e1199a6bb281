"""What the readers of annotation files share: JSON that may be damaged, and category ids that may be unknown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.utils.file_io import PathManager

Record = dict[str, Any]
_LONGEST_BLANK_END = 64  # bytes


def read_json(path: str) -> dict[str, Any]:
    """The content of a JSON file that must be an object."""
    try:
        with PathManager.open(path) as file:
            content = json.load(file)
    except ValueError as error:  # not JSON, or not text
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not an object with entries")
    return content


def require_end_of_json(path: str) -> None:
    """Raises ValueError where a JSON object is cut off, as its last character says: for who reads the file hours later.

    The end of the file is all that is read.
    """
    with PathManager.open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _LONGEST_BLANK_END, 0))
        if not file.read().rstrip().endswith(b"}"):
            raise damaged(path, f"it has {size} bytes and ends in the middle of its content")


@contextmanager
def complaints_name(path: str) -> Iterator[None]:
    """Turns what a missing or wrong entry of an annotation file raises into a ValueError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def damaged(path: str, reason: Exception | str) -> ValueError:
    """The error for a file that exists and cannot be used."""
    is_missing_entry = isinstance(reason, KeyError) and len(str(reason)) < 40
    what = f"the entry {reason} is missing" if is_missing_entry else str(reason)
    return ValueError(f"{path} cannot be used, it is cut off or not what its name says: {what}")


def contiguous_segments(
    annotation: dict[str, Any], things: dict[int, int], stuff: dict[int, int], path: str
) -> list[dict[str, Any]]:
    """`segments_info` of a panoptic annotation, with contiguous ids and `isthing`.

    Args:
        things: id in the data set -> contiguous id; asked first.
        stuff: the same of stuff, or of all classes.
        path: the annotation file, for messages.
    """
    segments = []
    for segment in annotation["segments_info"]:
        category = segment["category_id"]
        is_thing = category in things
        if not is_thing and category not in stuff:
            known = sorted({*things, *stuff})
            raise ValueError(
                f"{path}: {annotation['file_name']} has a segment of category {category}, "
                f"categories are {known[0]}..{known[-1]}" + ("" if len(known) > known[-1] - known[0] else " with gaps")
            )
        segments.append({**segment, "category_id": things[category] if is_thing else stuff[category]})
        segments[-1]["isthing"] = is_thing
    return segments
