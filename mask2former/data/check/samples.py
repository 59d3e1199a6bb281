"""Some pictures of a data set with their annotations drawn over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import Metadata

from mask2former.data.drawing import draw_record, spread
from mask2former.data.preparation.common import save_picture

__all__ = ["save_samples"]


def save_samples(
    records: Sequence[Mapping[str, Any]], metadata: Metadata, folder: str | Path, count: int
) -> list[Path]:
    """Draws `count` records spread over a data set.

    Args:
        metadata: of the data set.
        folder: made if needed; a file has the place of its record and the name of its picture.

    Returns:
        The files written. A record that cannot be drawn has none: what is wrong with it, the check has told.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for place in spread(range(len(records)), count):
        record = records[place]
        try:
            picture = draw_record(record, metadata)
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        source = Path(record["file_names"][0] if "file_names" in record else record["file_name"])
        path = folder / f"{place:06d}_{source.stem}.png"
        save_picture(path, picture)
        written.append(path)
    return written
