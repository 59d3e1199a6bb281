"""The configured results of one image: which masks are needed, and what reads them, block by block."""
# Q queries, R of them whose masks something reads, K classes, (h, w) cells of a mask, r rows of a block.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .instances import InstanceResult, instance_candidates
from .panoptic import PanopticResult, panoptic_candidates
from .resizing import Axis, MaskSizes, RowStream, resized_rows
from .semantic import SEMANTIC_RESULTS, SemanticResult

__all__ = ["MaskLogitsOf", "ResultSettings", "image_results"]

MaskLogitsOf = Callable[[Tensor], Tensor]  # (R,) indices of queries -> their mask logits (R, h, w) of the padded frame


@dataclass(frozen=True)
class ResultSettings:
    """What is wanted, and by which rules."""

    semantic_output: str | None  # a name in SEMANTIC_RESULTS; None: no semantic result
    instance_output: str | None  # one of INSTANCE_OUTPUTS; None: no instances
    panoptic_on: bool
    resize_first: bool  # masks before the semantic merge, instead of the merged map
    thing_ids: Sequence[int]  # contiguous ids of the classes that are things; read with panoptic_on
    object_mask_threshold: float  # see `panoptic_inference`
    overlap_threshold: float
    topk: int  # largest number of instances
    memory_budget: int  # bytes that blocks of rows may take, beside the results and the masks (R, h, w)


@torch.no_grad()
def image_results(
    class_logits: Tensor, mask_logits_of: MaskLogitsOf, sizes: MaskSizes, settings: ResultSettings
) -> dict[str, Any]:
    """`sem_seg` (see `SEMANTIC_RESULTS`), `panoptic_seg` and `instances`, as far as they are switched on.

    Panoptic and instance rules look at few queries: these are picked by class, and no other mask is asked for unless
    the semantic merge needs them all.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        mask_logits_of: gives the masks.
        sizes: how masks are resized.
    """
    semantic = panoptic = instances = None
    readers: list[tuple[Any, Tensor]] = []  # a result, and its queries
    if settings.instance_output is not None:
        things = settings.thing_ids if settings.panoptic_on else None
        candidates = instance_candidates(class_logits, topk=settings.topk, thing_ids=things)
        instances = InstanceResult(candidates, sizes.output, settings.instance_output)
        readers.append((instances, instances.queries))
    if settings.panoptic_on:
        queries = panoptic_candidates(class_logits, object_mask_threshold=settings.object_mask_threshold)
        panoptic = PanopticResult(
            class_logits[queries],
            sizes.output,
            thing_ids=settings.thing_ids,
            overlap_threshold=settings.overlap_threshold,
        )
        readers.append((panoptic, queries))
    if settings.semantic_output is not None:
        semantic = SEMANTIC_RESULTS[settings.semantic_output](class_logits, sizes.output)

    if semantic is not None and not settings.resize_first and sizes.image != sizes.output:
        _merge_then_resize(semantic, _every_mask(class_logits, mask_logits_of), sizes, settings.memory_budget)
    elif semantic is not None:
        _read_blocks(
            resized_rows(_every_mask(class_logits, mask_logits_of), sizes), readers, semantic, settings.memory_budget
        )
    elif readers:
        queries_R, places = torch.cat([queries for _, queries in readers]).unique(return_inverse=True)
        readers = [
            (result, place)
            for (result, _), place in zip(readers, places.split([len(queries) for _, queries in readers]), strict=True)
        ]
        _read_blocks(resized_rows(mask_logits_of(queries_R), sizes), readers, None, settings.memory_budget)
    return {
        **({} if semantic is None else semantic.value()),
        **({} if panoptic is None else {"panoptic_seg": panoptic.value(with_scores=True)}),
        **({} if instances is None else {"instances": instances.value()}),
    }


def _every_mask(class_logits: Tensor, mask_logits_of: MaskLogitsOf) -> Tensor:
    return mask_logits_of(torch.arange(len(class_logits), device=class_logits.device))


def _read_blocks(
    stream: RowStream, readers: Sequence[tuple[Any, Tensor]], semantic: SemanticResult | None, memory_budget: int
) -> None:
    """Shows every row of the masks (R, H, W) to all who read them; a reader has the indices of its masks."""
    bytes_per_pixel = stream.bytes_per_pixel + sum(
        result.bytes_per_pixel + 4 * len(places) for result, places in readers
    )
    if semantic is not None:
        bytes_per_pixel += semantic.bytes_per_pixel
    for rows in _row_blocks(stream.size, bytes_per_pixel, memory_budget):
        logits_RrW = stream.rows(rows.start, rows.stop)
        for result, places in readers:
            result.add(rows, logits_RrW[places])
        if semantic is not None:
            semantic.add(rows, logits_RrW)


def _merge_then_resize(semantic: SemanticResult, logits_Qhw: Tensor, sizes: MaskSizes, memory_budget: int) -> None:
    """The merged map instead of the masks is resized to the output (SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE False)."""
    masks = resized_rows(logits_Qhw, sizes._replace(output=sizes.image))
    height, width = (
        Axis.of(image, image, image, output, logits_Qhw.device)
        for image, output in zip(sizes.image, sizes.output, strict=True)
    )
    stream = RowStream(
        lambda start, stop: semantic.scores(masks.rows(start, stop)), semantic.num_classes, height, width
    )
    source_pixels = sizes.image[0] * sizes.image[1] / (sizes.output[0] * sizes.output[1])  # for each of the output
    bytes_per_pixel = stream.bytes_per_pixel + semantic.bytes_per_pixel + source_pixels * masks.bytes_per_pixel
    for rows in _row_blocks(stream.size, bytes_per_pixel, memory_budget):
        semantic.put(rows, stream.rows(rows.start, rows.stop))


def _row_blocks(size: tuple[int, int], bytes_per_pixel: float, memory_budget: int) -> Iterator[slice]:
    """All rows of a map of `size` = (height, width), in blocks within the budget of bytes; of at least one row each."""
    height, width = size
    rows_at_once = max(1, int(memory_budget / (width * max(bytes_per_pixel, 1))))
    for start in range(0, height, rows_at_once):
        yield slice(start, min(start + rows_at_once, height))
