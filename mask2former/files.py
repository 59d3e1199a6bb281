"""Writing files so that whoever reads them never meets half of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["write_atomically"]


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object], *, sync: bool = True) -> None:
    """Call `write` on a neighbor of `path` and rename it when complete: whoever is killed leaves the old file whole.

    Args:
        sync: wait until the disk has the bytes. False is for files by the thousand that can be made again: they survive
            a killed program all the same, but a power cut may leave an empty one.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            write(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
