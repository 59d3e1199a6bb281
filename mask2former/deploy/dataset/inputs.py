"""Which pictures a data set has, each one once: those of a folder, a list of files, or a table."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mask2former.deploy.dataset.extras import import_parquet
from mask2former.deploy.pictures import PICTURE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Inputs", "Row", "find_inputs", "rows_of_table"]

_ROWS_AT_A_TIME = 64  # of a table with pictures in it: more would fill the memory


class Row(NamedTuple):
    """One picture to be segmented."""

    name: str
    source: str | bytes | None  # path of the file, or what such a file contains; None: the table has nothing here


class Inputs:
    """The pictures of a data set.

    Attributes:
        base: the folder that names are relative to, or the table that contains the pictures.
        names: of the pictures, each once, in the order of the input.
        num_repeated: how many times a picture was named again.
    """

    def __init__(self, base: Path, names: list[str], *, num_repeated: int = 0, table: Path | None = None) -> None:
        self.base = base
        self.names = names
        self.num_repeated = num_repeated
        self.table = table

    def rows(self, done: Container[str]) -> Iterator[Row]:
        """The pictures whose names are not among `done`; those of a table are read a few at a time."""
        if self.table is not None:
            parquet = import_parquet()
            with parquet.ParquetFile(self.table) as file:
                for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=columns_of_table(file.schema_arrow)):
                    yield from (row for row in rows_of_table(batch) if row.name not in done)
        else:
            yield from (Row(name, os.path.join(self.base, name)) for name in self.names if name not in done)


def find_inputs(source: str) -> Inputs:
    """The pictures of a folder (and of the folders inside), of a list (.txt), or of a table (.parquet).

    A list has one file a line, relative to its own folder. A table has the columns `image` (what a picture file
    contains, or a struct of `bytes` and `path` as written by Hugging Face's datasets) and `path` (the name), or only
    `path`: a file, relative to the table's folder.

    Raises:
        OSError: there is no such file or folder.
        ValueError: no pictures, or a table without these columns, with empty or repeated names.
    """
    path = Path(os.path.abspath(Path(source).expanduser()))
    if path.is_dir():
        inputs = Inputs(path, sorted(_pictures_inside(path)))
    elif path.suffix.lower() == ".parquet":
        inputs = _inputs_of_table(path)
    elif path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        inputs = _inputs_of_files(path.parent, [line.strip() for line in lines if line.strip()])
    else:
        what = "is neither a folder nor a .txt or .parquet file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"--input {source!r} {what}")
    if not inputs.names:
        hint = f" ({', '.join(PICTURE_SUFFIXES)})" if path.is_dir() else ""
        raise ValueError(f"--input {source!r} has no picture{hint}")
    return inputs


def rows_of_table(batch: pyarrow.RecordBatch | pyarrow.Table) -> Iterator[Row]:
    """The rows of a part of a table whose column `image` contains pictures."""
    images = batch.column("image").to_pylist()
    for name, image in zip(names_of_table(batch), images, strict=True):
        yield Row(name, image["bytes"] if isinstance(image, dict) else image)


def names_of_table(batch: pyarrow.RecordBatch | pyarrow.Table) -> list[Any]:
    """The names of these rows; None where a row has none."""
    import pyarrow.compute

    has_paths = "path" in batch.schema.names
    column = batch.column("path") if has_paths else pyarrow.compute.struct_field(batch.column("image"), "path")
    names: list[Any] = column.to_pylist()
    return names


def columns_of_table(schema: pyarrow.Schema) -> list[str]:
    """Which columns of a table are read."""
    return [name for name in ("path", "image") if name in schema.names]


def _pictures_inside(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES:
                yield os.path.relpath(os.path.join(parent, name), folder)


def _inputs_of_files(base: Path, files: list[str]) -> Inputs:
    """Names are paths relative to the base where the files lie inside, so that one file has one name."""
    names: dict[str, None] = {}
    for file in files:
        path = os.path.normpath(base / Path(file).expanduser())
        names[os.path.relpath(path, base) if Path(path).is_relative_to(base) else path] = None
    return Inputs(base, list(names), num_repeated=len(files) - len(names))


def _inputs_of_table(path: Path) -> Inputs:
    parquet = import_parquet()
    schema = parquet.read_schema(path)
    if "image" not in schema.names and "path" not in schema.names:
        raise ValueError(f"{path} has neither a column 'image' nor 'path', but {', '.join(map(repr, schema.names))}")
    if "path" not in schema.names and not _has_field(schema.field("image"), "path"):
        raise ValueError(f"{path}: its pictures have no names; add a column 'path' whose values tell them apart")
    column = "path" if "path" in schema.names else "image.path"
    names = names_of_table(parquet.read_table(path, columns=[column]))
    if None in names:
        raise ValueError(f"{path}: row {names.index(None)} has no name in column {column!r}")
    if "image" not in schema.names:
        return _inputs_of_files(path.parent, names)
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in rows:
            raise ValueError(f"{path}: rows {rows[name]} and {row} have the same name {name!r} in column {column!r}")
        rows[name] = row
    return Inputs(path, names, table=path)


def _has_field(column: pyarrow.Field, name: str) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(column.type) and column.type.get_field_index(name) >= 0)
