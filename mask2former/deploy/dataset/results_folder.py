"""The folder of results: shards that are whole or not there, the list of broken pictures, and what they were made by.

    manifest.json     the settings: another model or task is refused
    part-00000.jsonl  records of so many pictures, as many files as it takes
    errors.jsonl      name and reason of each picture that has no result

What is done is read from these files alone, so that they cannot disagree with a separate account of progress.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mask2former.deploy.dataset.batches import Record
from mask2former.deploy.dataset.shards import ShardFormat
from mask2former.files import write_atomically

__all__ = ["ResultsFolder"]

_MANIFEST = "manifest.json"
_ERRORS = "errors.jsonl"
_LOCK = ".lock"


class ResultsFolder:
    """Where records are written to, each name once, by one program at a time. Close it, or use it in `with`.

    Args:
        path: a new folder, an empty one, or one that an earlier run with the same settings has begun.
        settings: what results depend on; can be JSON.
        form: of the shards.
        shard_size: records of a shard. A kill costs at most so many.
        retry_errors: forget which pictures were broken, so that they are tried again.

    Attributes:
        done: names that have a result or a reason for having none; those in memory included.
        num_results, num_broken: how many of each.

    Raises:
        OSError: nothing can be written here, another program does, or the folder holds something else.
        ValueError: the folder was begun with other settings, or a shard is damaged; the message says which.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        form: ShardFormat,
        *,
        shard_size: int,
        retry_errors: bool = False,
    ) -> None:
        self.path = Path(path)
        self._form = form
        self._shard_size = shard_size
        self._waiting: list[Record] = []
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.path)
        try:
            self._check_settings(settings)
            self._read_results()
            self._errors = self._open_errors(retry_errors)
        except BaseException:
            self._lock.close()
            raise

    def add(self, records: Iterable[Record]) -> list[Path]:
        """Take records; broken pictures are listed at once, results wait for their shard to be full.

        Returns:
            The shards that were written.
        """
        written = []
        for record in records:
            if record["name"] in self.done:
                raise RuntimeError(f"{record['name']!r} has a result already: it must not be segmented twice")
            self.done.add(record["name"])
            if "error" in record:
                self._errors.write(json.dumps(record).encode() + b"\n")
                self.num_broken += 1
                continue
            self._waiting.append(record)
            self.num_results += 1
            if len(self._waiting) >= self._shard_size:
                written.append(self._write_shard())
        return written

    def close(self) -> Path | None:
        """Write what waits as a last, smaller shard. The folder can be used by others then."""
        try:
            return self._write_shard() if self._waiting else None
        finally:
            self._errors.close()
            self._lock.close()

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        manifest = self.path / _MANIFEST
        wanted = json.loads(json.dumps(settings))
        if not manifest.exists():
            others = sorted(name for name in os.listdir(self.path) if not name.startswith("."))
            if others:
                raise FileExistsError(f"{self.path} holds {others[0]!r} and no {_MANIFEST}: choose another --output")
            text = json.dumps(wanted, indent=2) + "\n"
            write_atomically(manifest, lambda file: file.write(text.encode()))
            return
        found = json.loads(manifest.read_text(encoding="utf-8"))
        for name in {**found, **wanted}:
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{self.path} was begun with another {name} ({_difference(found.get(name), wanted.get(name))}): "
                    "repeat that, or choose another --output"
                )

    def _read_results(self) -> None:
        self.done: set[str] = set()
        self._next_shard = 0
        pattern = re.compile(rf"part-(\d+){re.escape(self._form.suffix)}")
        for path in sorted(self.path.iterdir()):
            found = pattern.fullmatch(path.name)
            if found is None:
                continue
            self._next_shard = max(self._next_shard, int(found[1]) + 1)
            try:
                self.done.update(self._form.names(path))
            except (ValueError, KeyError, OSError) as error:
                raise ValueError(f"{path} is damaged ({error}): remove it, and its pictures are done again") from error
        self.num_results = len(self.done)

    def _open_errors(self, retry: bool) -> IO[bytes]:
        path = self.path / _ERRORS
        # Unbuffered: a line is in the file when it is written. The last one of a killed run may be half of one.
        file = open(path, "w+b" if retry else "a+b", buffering=0)  # noqa: SIM115  (closed with the folder)
        file.seek(0)
        lines = file.readall().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        names = [json.loads(line)["name"] for line in lines]
        self.num_broken = len(names)
        self.done.update(names)
        return file

    def _write_shard(self) -> Path:
        path = self.path / f"part-{self._next_shard:05d}{self._form.suffix}"
        write_atomically(path, lambda file: self._form.write(file, self._waiting))
        self._next_shard += 1
        self._waiting = []
        return path


def _locked(folder: Path) -> IO[bytes]:
    """An open file that no other program can lock; the system releases it when this one ends, however it ends."""
    lock = open(folder / _LOCK, "wb")  # noqa: SIM115  (open as long as the folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise BlockingIOError(f"another program is writing to {folder}") from error
    return lock


def _difference(found: Any, wanted: Any) -> str:
    """What differs, down to the first entry that does."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        name = next(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))
        return f"{name}: {_difference(found.get(name), wanted.get(name))}"
    return f"{found!r}, now {wanted!r}"
