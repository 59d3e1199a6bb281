"""Pictures of any size: cut into overlapping tiles, segmented tile by tile, and put together again.

Semantic scores are averaged where tiles overlap (`tiles.Grid`), instances and panoptic segments are recognized across
the seams (`seams.SeamMatcher`). A picture that one tile covers is segmented as it is.
"""

# (H, W) pixels of the picture, (h, w) of a tile, K classes.

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.deploy.assembly import Assembly, InstanceAssembly, PanopticAssembly, SemanticAssembly
from mask2former.deploy.large_pictures import ArrayPicture, LargePicture, Part
from mask2former.deploy.mask_cleanup import MaskCleanup, drop_weak
from mask2former.deploy.mask_runs import check_num_pixels
from mask2former.deploy.results import Segmentation, Task
from mask2former.deploy.runtime import Segmenter
from mask2former.deploy.scratch import ArrayStore
from mask2former.deploy.tiles import Grid, Tile

__all__ = ["segment_large"]

NO_CLEANUP = MaskCleanup()

Progress = Callable[[Iterable[Tile]], Iterable[Tile]]


def segment_large(
    segmenter: Segmenter,
    picture: LargePicture | NDArray[np.uint8],
    task: Task | None = None,
    *,
    tile: int = 1024,
    overlap: int = 128,
    min_overlap: float = 0.5,
    cleanup: MaskCleanup = NO_CLEANUP,
    memory_budget_mb: int | None = None,
    scratch: Path | None = None,
    progress: Progress = iter,
) -> Segmentation:
    """Segments a picture tile by tile.

    One tile that covers the picture gives what `segmenter(picture, task)` gives, bit for bit. Pixels without data
    (`Part.valid`) are void in a panoptic map, -1 in a semantic one, and in no mask; tiles without any data are skipped.

    Args:
        segmenter: see `runtime.load`.
        picture: from `open_picture`, or an (H, W, 3) uint8 RGB array.
        task: one of the segmenter's; None: its first.
        tile: sides of a tile in pixels. The segmenter resizes it as any picture: its own size keeps the scale.
        overlap: pixels that neighboring tiles share at least, less than half of `tile`: as large as what must be seen
            to know an object, but not larger.
        min_overlap: see `seams.SeamMatcher`.
        cleanup: done at the end, in memory: about 12 bytes per pixel of a map and 6 per pixel of the largest box.
        memory_budget_mb: MiB that the whole process may take. Maps and scores for which it leaves no room beside the
            network lie in files and are mapped to memory, from which the system drops what it needs for others. Not
            measured are memory of a GPU and the run lengths of the segments. None: everything lies in memory.
        scratch: folder of these files; None: the system's folder of temporary files.
        progress: goes through the tiles, for example as a bar.

    Raises:
        ValueError: a size or the task does not fit, or the network alone exceeds the budget; the message says which.
        PictureError: the picture's file is damaged.
    """
    if not isinstance(picture, LargePicture):
        picture = ArrayPicture(picture)
    task = segmenter.tasks[0] if task is None else task
    if task not in segmenter.tasks:
        raise ValueError(f"task {task!r} is unknown; this model has {', '.join(segmenter.tasks)}")
    check_num_pixels(picture.size)
    grid = Grid(picture.size, tile=tile, overlap=overlap)
    segment = partial(_segment_tile, segmenter, task, cleanup)
    if len(grid) == 1:
        part = picture.read(slice(0, picture.size[0]), slice(0, picture.size[1]))
        if part.valid is None:
            return cleanup(segmenter(part.image, task))
    store = ArrayStore() if memory_budget_mb is None else _store(grid, picture, segment, memory_budget_mb, scratch)
    assembly = _assembly(task, segmenter, grid, store, min_overlap)
    for place in progress(grid):
        part = picture.read(place.rows, place.columns)
        assembly.add(place, None if _is_void(part) else segment(part), part.valid)
    return cleanup(assembly.value())


def _assembly(task: Task, segmenter: Segmenter, grid: Grid, store: ArrayStore, min_overlap: float) -> Assembly:
    if task == "semantic":
        return SemanticAssembly(grid, segmenter.classes, store)
    if task == "panoptic":
        return PanopticAssembly(grid, segmenter.classes, store, min_overlap=min_overlap)
    return InstanceAssembly(grid, segmenter.classes, min_overlap=min_overlap)


def _segment_tile(segmenter: Segmenter, task: Task, cleanup: MaskCleanup, part: Part) -> Any:
    """What the task's assembly takes."""
    if task == "semantic":
        return segmenter.semantic_scores(part.image)
    # A mean of scores is below the threshold only if one of them is: what is dropped here costs no work at the seams.
    return drop_weak(segmenter(part.image, task), cleanup.threshold)


def _is_void(part: Part) -> bool:
    return part.valid is not None and not part.valid.any()


def _store(
    grid: Grid, picture: LargePicture, segment: Callable[[Part], Any], budget_mb: int, scratch: Path | None
) -> ArrayStore:
    """A store for what the budget leaves when a tile from the middle of the picture has been segmented once."""
    places = list(grid)
    place = places[len(places) // 2]
    segment(picture.read(place.rows, place.columns))
    taken = _peak_memory()
    left = budget_mb * 2**20 - taken
    if left < 0:
        raise ValueError(
            f"a tile of {place.size[0]} x {place.size[1]} already took {taken / 2**20:.0f} MiB with network and "
            f"picture, more than the memory budget of {budget_mb} MiB: choose smaller tiles or raise the budget"
        )
    return ArrayStore(left, scratch)


def _peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
