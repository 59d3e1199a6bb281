"""The engine of many machines: Ray Data with actors that keep the model."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mask2former import processes
from mask2former.deploy.dataset.batches import KILLED, BatchSegmenter, Record, broken
from mask2former.deploy.dataset.extras import import_ray
from mask2former.deploy.dataset.inputs import Inputs, Row, columns_of_table, names_of_table, rows_of_table

if TYPE_CHECKING:
    import pyarrow

__all__ = ["segment_on_cluster"]

_OBJECT_STORE = 256 * 2**20  # bytes, of a local instance: pictures travel as files, results as run lengths
_BLOCK_SIZE = 2 * 2**20  # bytes: results come back in blocks, and small ones come back soon
_MOST_BLOCKS = 10_000  # that the pictures are divided into, all of which Ray keeps account of
_READER_CORES = 1  # left to the task that reads a table: actors on all cores would wait for it for ever
_MOST_DEATHS = 2  # of actors at the same picture


def segment_on_cluster(
    inputs: Inputs,
    done: set[str],
    make_segmenter: Callable[[], BatchSegmenter],
    *,
    num_workers: tuple[int, int] | None,
    batch_size: int,
    num_threads: int,
    is_stopped: Callable[[], bool],
) -> Iterator[list[Record]]:
    """Records of all pictures whose names are not `done`, block by block, in the order in which they are ready.

    RAY_ADDRESS names a running cluster; without it, Ray runs on this machine alone and ends with the generator. Where
    the cluster has GPUs, each actor takes one. All machines must see the files by the same names.

    Args:
        make_segmenter: called in each actor; can be pickled.
        num_workers: fewest and most actors, between which Ray chooses; None takes from one to as many as there are
            GPUs, or as fit on all cores but one. A table is read by another task, to which the fewest actors must leave
            a core.
        num_threads: cores that an actor takes.
        is_stopped: asked before every block.
    """
    with _ray(num_cores=(num_workers or (1, 1))[1] * num_threads) as ray:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        num_places = num_gpus or int(ray.cluster_resources()["CPU"] - _READER_CORES) // num_threads
        fewest, most = num_workers or (1, max(1, num_places))
        unfinished = ray.remote(num_cpus=0)(_Unfinished).remote()  # ends with the last variable that refers to it
        pictures = _dataset(ray, inputs, done, batch_size)
        records = pictures.map_batches(
            _Actor,
            fn_constructor_args=(make_segmenter, unfinished),
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
            num_cpus=num_threads,
            num_gpus=1 if num_gpus else None,
        )
        for block in records.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield [json.loads(record) for record in block["record"].to_pylist()]
            if is_stopped():
                return


class _Actor:
    """The model in a process of Ray."""

    def __init__(self, make_segmenter: Callable[[], BatchSegmenter], unfinished: Any) -> None:
        self._segment = make_segmenter()
        self._unfinished = unfinished
        self._get = import_ray().get

    def __call__(self, batch: pyarrow.Table) -> dict[str, Any]:
        if "image" in batch.column_names:
            rows = list(rows_of_table(batch))
        else:
            rows = [Row(*values) for values in zip(*batch.to_pydict().values(), strict=True)]
        is_suspect = any(self._get(self._unfinished.counts.remote([row.name for row in rows])))
        groups = [[row] for row in rows] if is_suspect else [rows]
        return {"record": [json.dumps(record) for group in groups for record in self._records(group)]}

    def _records(self, rows: list[Row]) -> list[Record]:
        names = [row.name for row in rows]
        counts = self._get(self._unfinished.begin.remote(names))
        if len(rows) == 1 and counts[0] >= _MOST_DEATHS:
            return [broken(rows[0], KILLED)]
        records = self._segment(rows)
        self._get(self._unfinished.end.remote(names))
        return records


class _Unfinished:
    """How often each picture was begun and not finished, because its actor was killed or its machine was lost.

    Ray itself begins a lost batch again, without end if one of its pictures is what kills the actors.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def counts(self, names: list[str]) -> list[int]:
        return [self._counts[name] for name in names]

    def begin(self, names: list[str]) -> list[int]:
        """The counts before this beginning."""
        counts = self.counts(names)
        self._counts.update(names)
        return counts

    def end(self, names: list[str]) -> None:
        for name in names:
            del self._counts[name]


@contextmanager
def _ray(num_cores: int) -> Iterator[Any]:
    """Ray with a connection to a cluster, or with at least so many cores of this machine."""
    ray = import_ray()
    handler = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=max(num_cores, processes.num_cores()) + _READER_CORES,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    signal.signal(signal.SIGTERM, handler)  # Ray has set its own
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_SIZE
    try:
        yield ray
    finally:
        ray.shutdown()


def _dataset(ray: Any, inputs: Inputs, done: set[str], batch_size: int) -> Any:
    """The pictures that remain, as a dataset of Ray."""
    import pyarrow.parquet

    size = max(2 * batch_size, -(-len(inputs.names) // _MOST_BLOCKS))
    if inputs.table is None:
        rows = list(inputs.rows(done))
        blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
        return ray.data.from_arrow(
            [
                pyarrow.table({"name": [row.name for row in block], "source": [row.source for row in block]})
                for block in blocks
            ]
        )
    columns = columns_of_table(pyarrow.parquet.read_schema(inputs.table))
    num_blocks = -(-len(inputs.names) // size)
    table = ray.data.read_parquet(str(inputs.table), columns=columns, override_num_blocks=num_blocks)
    return table.map_batches(_Remaining(done), batch_format="pyarrow", batch_size=None)


class _Remaining:
    """Drops the rows that are done."""

    def __init__(self, done: set[str]) -> None:
        self._done = done

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        remaining = [index for index, name in enumerate(names_of_table(batch)) if name not in self._done]
        return batch.take(remaining)
