"""The two forms of a file of results: Parquet and JSON lines. Both hold the same records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from mask2former.deploy.dataset.batches import Record
from mask2former.deploy.dataset.extras import import_parquet

if TYPE_CHECKING:
    import pyarrow

__all__ = ["SHARD_FORMATS", "ShardFormat", "shard_format"]

SHARD_FORMATS = ("parquet", "jsonl")


class ShardFormat(Protocol):
    """How records become a file."""

    suffix: str

    def write(self, file: IO[bytes], records: Sequence[Record]) -> None:
        """Write a whole file."""

    def names(self, path: Path) -> list[str]:
        """The names of the records in a file. Raises ValueError when it is damaged."""


class JsonLines:
    """One JSON object a line."""

    suffix = ".jsonl"

    def write(self, file: IO[bytes], records: Sequence[Record]) -> None:
        file.writelines(json.dumps(record).encode() + b"\n" for record in records)

    def names(self, path: Path) -> list[str]:
        with open(path, "rb") as file:
            return [json.loads(line)["name"] for line in file]


class ParquetTable:
    """One row a picture, its segments as a list of structs.

    Args:
        masks: what the column of masks contains, "rle", "polygons" or "none".
    """

    suffix = ".parquet"

    def __init__(self, masks: str) -> None:
        self._parquet = import_parquet()
        self._schema = _schema(masks)

    def write(self, file: IO[bytes], records: Sequence[Record]) -> None:
        import pyarrow

        table = pyarrow.Table.from_pylist(list(records), schema=self._schema)
        self._parquet.write_table(table, file, compression="zstd")

    def names(self, path: Path) -> list[str]:
        names: list[str] = self._parquet.read_table(path, columns=["name"])["name"].to_pylist()
        return names


def shard_format(name: str, masks: str) -> ShardFormat:
    """The form with one of the names in `SHARD_FORMATS`.

    Raises:
        ModuleNotFoundError: Parquet without pyarrow.
    """
    if name not in SHARD_FORMATS:
        raise ValueError(f"--format {name!r} is unknown; choose from {', '.join(SHARD_FORMATS)}")
    return ParquetTable(masks) if name == "parquet" else JsonLines()


def _schema(masks: str) -> pyarrow.Schema:
    """Columns of `Segmentation.to_json`, stated, because a table without segments would not tell their types."""
    import pyarrow as pa

    segment: list[tuple[str, Any]] = [
        ("category", pa.int32()),
        ("name", pa.string()),
        ("dataset_id", pa.int64()),
        ("is_thing", pa.bool_()),
        ("score", pa.float64()),
        ("box", pa.list_(pa.float64())),
        ("area", pa.int64()),
    ]
    if masks == "rle":
        segment.append(("mask", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])))
    elif masks == "polygons":
        segment.append(("polygons", pa.list_(pa.list_(pa.int32()))))
    return pa.schema(
        [
            ("name", pa.string()),
            ("task", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("segments", pa.list_(pa.struct(segment))),
        ]
    )
