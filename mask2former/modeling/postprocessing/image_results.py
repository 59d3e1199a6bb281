"""The configured results of one image: which masks are needed, and what reads them, block by block."""
# Q queries, R of them whose masks something reads, K classes, (h, w) cells of a mask, r rows of a block.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from .host import different, to_host
from .instances import InstanceResult, instance_candidates
from .panoptic import PanopticResult, panoptic_candidates
from .resizing import Axis, MaskSizes, Resizing, resizing
from .semantic import SEMANTIC_RESULTS, SemanticResult
from .stripes import for_each_stripe, num_stripes

__all__ = ["MaskLogitsOf", "ResultSettings", "image_results"]

CPU_CACHE = 2**23  # bytes; on the CPU larger blocks than a core's cache holds are slower

MaskLogitsOf = Callable[[Tensor], Tensor]  # (R,) indices of queries -> their mask logits (R, h, w) of the padded frame


@dataclass(frozen=True)
class ResultSettings:
    """What is wanted, and by which rules."""

    semantic_output: str | None  # a name in SEMANTIC_RESULTS; None: no semantic result
    instance_output: str | None  # one of INSTANCE_OUTPUTS; None: no instances
    panoptic_on: bool
    resize_first: bool  # masks before the semantic merge, instead of the merged map
    thing_ids: Sequence[int] | None  # contiguous ids of the classes that are things; None: instances are of all classes
    object_mask_threshold: float  # see `panoptic_inference`
    overlap_threshold: float
    topk: int  # largest number of instances
    memory_budget: int  # bytes that blocks of rows may take, beside the results and the masks (R, h, w)


@torch.no_grad()
def image_results(
    class_logits: Tensor,
    mask_logits_of: MaskLogitsOf,
    sizes: MaskSizes,
    settings: ResultSettings,
    *,
    with_queries: bool = False,
) -> dict[str, Any]:
    """`sem_seg` (see `SEMANTIC_RESULTS`), `panoptic_seg` and `instances`, as far as they are switched on.

    Panoptic and instance rules look at few queries: these are picked by class, and no other mask is asked for unless
    the semantic merge needs them all.

    Args:
        class_logits: (Q, K + 1), last class = "no object".
        mask_logits_of: gives the masks.
        sizes: how masks are resized.
        with_queries: say of each segment which query it came from, for those who follow objects through a video: adds
            `panoptic_queries` and `instance_queries`, (N,) int64, in the order of the segments.
    """
    semantic = panoptic = instances = None
    readers: list[tuple[Any, Tensor]] = []  # a result, and its queries
    if settings.instance_output is not None:
        candidates = instance_candidates(class_logits, topk=settings.topk, thing_ids=settings.thing_ids)
        instances = InstanceResult(candidates, len(class_logits), sizes.output, settings.instance_output)
        readers.append((instances, instances.queries))
    if settings.panoptic_on:
        owners = panoptic_candidates(class_logits, object_mask_threshold=settings.object_mask_threshold)
        panoptic = PanopticResult(
            owners,
            sizes.output,
            thing_ids=settings.thing_ids or (),
            overlap_threshold=settings.overlap_threshold,
        )
        readers.append((panoptic, owners.queries))
    if settings.semantic_output is not None:
        semantic = SEMANTIC_RESULTS[settings.semantic_output](class_logits, sizes.output)

    if semantic is not None:
        logits_Qhw = mask_logits_of(torch.arange(len(class_logits), device=class_logits.device))
        if settings.resize_first or sizes.image == sizes.output:
            _read_blocks(resizing(logits_Qhw, sizes), readers, semantic, settings.memory_budget)
        else:
            _merge_then_resize(semantic, logits_Qhw, sizes, settings.memory_budget)
    elif readers:
        queries_R, places = different(torch.cat([queries for _, queries in readers]), len(class_logits))
        readers = [
            (result, place)
            for (result, _), place in zip(readers, places.split([len(queries) for _, queries in readers]), strict=True)
        ]
        _read_blocks(resizing(mask_logits_of(queries_R), sizes), readers, None, settings.memory_budget)
    # All that the host must know, in one copy.
    for_host = [result.for_host() for result, _ in readers]
    known = iter(to_host(*chain(*for_host)))
    results: dict[str, Any] = {} if semantic is None else semantic.value()
    if instances is not None:
        results["instances"] = instances.value(*islice(known, len(for_host[0])))
    if panoptic is not None:
        results["panoptic_seg"] = panoptic.value(*known, with_scores=True)
    if with_queries and panoptic is not None:
        queries = torch.tensor(panoptic.queries_of_segments, dtype=torch.int64)
        results["panoptic_queries"] = queries.to(class_logits.device, non_blocking=True)
    if with_queries and instances is not None:
        results["instance_queries"] = instances.queries_of_instances
    return results


def _read_blocks(
    masks: Resizing, readers: Sequence[tuple[Any, Tensor]], semantic: SemanticResult | None, memory_budget: int
) -> None:
    """Shows every row of R masks to all who read them; a reader has the indices of its own."""
    bytes_per_pixel = masks.bytes_per_pixel + (0 if semantic is None else semantic.bytes_per_pixel)
    bytes_per_pixel += sum(result.bytes_per_pixel + 4 * len(places) for result, places in readers)

    def read(blocks: Sequence[slice]) -> None:
        stream = masks.stream()
        for rows in blocks:
            logits_RrW = stream.rows(rows.start, rows.stop)
            for result, places in readers:
                result.add(rows, logits_RrW.index_select(0, places))
            if semantic is not None:
                semantic.add(rows, logits_RrW)

    _for_each_block(read, masks, bytes_per_pixel, memory_budget)


def _merge_then_resize(semantic: SemanticResult, logits_Qhw: Tensor, sizes: MaskSizes, memory_budget: int) -> None:
    """The merged map instead of the masks is resized to the output (SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE False)."""
    masks = resizing(logits_Qhw, sizes._replace(output=sizes.image))
    height, width = (
        Axis.of(image, image, image, output, logits_Qhw.device)
        for image, output in zip(sizes.image, sizes.output, strict=True)
    )

    def open_source() -> Callable[[int, int], Tensor]:
        stream = masks.stream()
        return lambda start, stop: semantic.scores(stream.rows(start, stop))

    merged = Resizing(open_source, semantic.num_classes, height, width)
    source_pixels = sizes.image[0] * sizes.image[1] / (sizes.output[0] * sizes.output[1])  # for each of the output
    bytes_per_pixel = merged.bytes_per_pixel + semantic.bytes_per_pixel + source_pixels * masks.bytes_per_pixel

    def put(blocks: Sequence[slice]) -> None:
        stream = merged.stream()
        for rows in blocks:
            semantic.put(rows, stream.rows(rows.start, rows.stop))

    _for_each_block(put, merged, bytes_per_pixel, memory_budget)


def _for_each_block(
    work: Callable[[Sequence[slice]], None], maps: Resizing, bytes_per_pixel: float, memory_budget: int
) -> None:
    """All rows in blocks within the budget, of at least one row each; `work` gets stripes of neighboring blocks."""
    height, width = maps.size
    device = maps.height.weights.device
    memory = memory_budget / num_stripes(device)
    if device.type == "cpu":
        memory = min(memory, CPU_CACHE)
    rows_at_once = max(1, int(memory / (width * max(bytes_per_pixel, 1))))
    blocks = [slice(start, min(start + rows_at_once, height)) for start in range(0, height, rows_at_once)]
    for_each_stripe(work, blocks, device)
