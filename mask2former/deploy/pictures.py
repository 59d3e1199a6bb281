"""Picture files named on a command line: what to read, where to write, and never over something that is there."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["PICTURE_SUFFIXES", "find_pictures", "output_paths", "write_picture"]

#: What is taken from a folder.
PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_pictures(inputs: Iterable[str]) -> list[Path]:
    """The files meant by names, folders (their pictures, not those of folders inside) and patterns like "~/a*/*.jpg".

    Returns:
        Every file once, in the order of `inputs`, and by name inside a folder or pattern.

    Raises:
        FileNotFoundError: an input names nothing that exists; the message says which.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            matches = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
            if not matches:
                raise FileNotFoundError(f"--input {name!r}: the folder has no picture ({', '.join(PICTURE_SUFFIXES)})")
        elif path.is_file():  # also a file whose name looks like a pattern
            matches = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match))
            if not matches:
                what = "the pattern matches no file" if glob.has_magic(str(path)) else "there is no such file or folder"
                raise FileNotFoundError(f"--input {name!r}: {what}")
        found.update(dict.fromkeys(matches))
    return list(found)


def output_paths(pictures: Sequence[Path], output: str | Path) -> list[Path]:
    """Where the drawing of each picture goes.

    A folder (existing, or without a suffix) receives the drawings under the pictures' own names; where two pictures
    have the same name, under their paths from the folder common to all. A file name is for a single picture. A format
    that cannot be written becomes PNG.

    Raises:
        FileExistsError: an output exists.
        ValueError: a file name for several pictures, or a suffix that cannot be written.
    """
    output = Path(output).expanduser()
    if output.suffix and not output.is_dir():
        if len(pictures) != 1:
            raise ValueError(
                f"--output {str(output)!r} names a file, but there are {len(pictures)} pictures: name a folder"
            )
        if output.suffix.lower() not in _writable_suffixes():
            raise ValueError(
                f"--output {str(output)!r}: pictures cannot be written as {output.suffix}; use .png or .jpg"
            )
        paths = [output]
    else:
        paths = [output / name for name in _distinct_names(pictures)]
    existing = [path for path in paths if path.exists()]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise FileExistsError(
            f"{existing[0]}{more} exist and are not overwritten; choose another --output or remove them"
        )
    return paths


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Writes an (H, W, 3) uint8 RGB picture, whole or not at all; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        Image.fromarray(picture).save(unfinished, quality=92)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _distinct_names(pictures: Sequence[Path]) -> list[Path]:
    """A relative path for each picture, none of them twice."""
    absolute = [Path(os.path.abspath(path)) for path in pictures]
    names = [Path(path.name) for path in absolute]
    if len(set(names)) < len(names):
        common = os.path.commonpath([path.parent for path in absolute])
        names = [path.relative_to(common) for path in absolute]
    names = [name if name.suffix.lower() in _writable_suffixes() else name.with_suffix(".png") for name in names]
    # Only a change of suffix can make two names equal now: then the old suffix stays part of the name.
    return [
        Path(f"{name.with_suffix('')}{path.suffix.replace('.', '_')}{name.suffix}") if names.count(name) > 1 else name
        for name, path in zip(names, absolute, strict=True)
    ]


def _writable_suffixes() -> set[str]:
    registered = Image.registered_extensions()  # also initializes Image.SAVE
    return {suffix for suffix, name in registered.items() if name in Image.SAVE and suffix in PICTURE_SUFFIXES}
