"""A folder that a preparation makes whole or not at all, and recognizes by the settings it was made with."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Progress", "no_progress", "prepare_folder", "write_json"]

#: Wraps the indices of a split whose name it is given, for a progress bar.
Progress = Callable[[Iterable[int], str], Iterable[int]]

_SETTINGS_FILE = "preparation.json"


def no_progress(indices: Iterable[int], _split: str) -> Iterable[int]:
    return indices


def prepare_folder(
    output: str | Path, settings: Mapping[str, int], write: Callable[[Path], None], *, overwrite: bool = False
) -> bool:
    """Has `write` fill a new folder, which becomes `output` when it is complete; an interruption leaves nothing there.

    Args:
        settings: what the content depends on, and nothing else; kept beside it in preparation.json.
        write: fills the folder that it is given and that does not exist yet.
        overwrite: replace a folder that was prepared with other settings.

    Returns:
        False when `output` was prepared with the same settings and nothing was done.

    Raises:
        ValueError: `output` was prepared with other settings and `overwrite` is off, or holds anything else.
    """
    target = Path(output)
    if target.exists() and any(target.iterdir()):
        found = _read_settings(target)
        if found == settings and not overwrite:
            return False
        if found is None:
            raise ValueError(f"{target} holds files that this preparation did not write; choose another output folder")
        if not overwrite:
            raise ValueError(
                f"{target} was prepared with other settings ({found}); choose another output folder or --overwrite"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        unfinished = workspace / "new"
        write(unfinished)
        write_json(unfinished / _SETTINGS_FILE, settings)
        _replace_folder(target, unfinished, put_aside=workspace / "old")
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return True


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _replace_folder(target: Path, unfinished: Path, *, put_aside: Path) -> None:
    if target.exists():
        os.replace(target, put_aside)
    try:
        os.replace(unfinished, target)
    except OSError:
        if put_aside.exists():
            os.replace(put_aside, target)
        raise


def _read_settings(folder: Path) -> Any:
    path = folder / _SETTINGS_FILE
    return json.loads(path.read_text()) if path.is_file() else None
