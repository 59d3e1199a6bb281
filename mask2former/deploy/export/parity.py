"""What an export is worth: whether it gives what the model gives, and whether it is faster."""

# (h, w) pixels for the network, (H, W) pixels of the result.

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.deploy.export.exported import ExportedModel
from mask2former.deploy.results import ClassInfo, Segmentation, Task, segmentation_of
from mask2former.deploy.runtime import OneTask

__all__ = ["BOUNDS", "Agreement", "Bounds", "ParityError", "Speed", "compare", "compare_speed", "parity_sizes"]

SAME_MASK = 0.9  # intersection over union
SAME_SCORE = 0.05
WORTH_COMPARING = 0.1  # score of an instance: hundreds of worse ones are ranked by rounding
#: Share of the queries whose class logits are judged. Rounding moves a pixel across the border of a mask now and then,
#: which changes what one query attends to, and with it all its logits: of those masks and segments tell more.
MOST = 0.95


@dataclass(frozen=True)
class Bounds:
    """What must hold for every picture."""

    logits: float  # largest difference of class logits, but for a few queries: `MOST`
    masks: float  # smallest share of mask logits with the same sign
    segments: float  # smallest `Agreement.segments`


BOUNDS = {
    "fp32": Bounds(logits=0.01, masks=0.999, segments=0.99),
    "fp16": Bounds(logits=2.0, masks=0.98, segments=0.9),
    "bf16": Bounds(logits=2.0, masks=0.95, segments=0.8),
    "int8": Bounds(logits=2.0, masks=0.95, segments=0.8),
}


class ParityError(ValueError):
    """An export gives other results than its model."""


@dataclass(frozen=True)
class Agreement:
    """How far results agree on one picture.

    Attributes:
        image_size, output_size: (h, w) and (H, W).
        class_logits, mask_logits: largest differences.
        most_class_logits: largest in a share of `MOST` of the queries.
        masks: share of mask logits with the same sign.
        num_segments: that the model finds.
        segments: of maps the share of pixels with the same class and, in panoptic maps, a segment that is the same; of
            instances the share, by score, that has a partner of the same class, score and mask.
    """

    image_size: tuple[int, int]
    output_size: tuple[int, int]
    class_logits: float
    most_class_logits: float
    mask_logits: float
    masks: float
    num_segments: int
    segments: float

    def is_within(self, bounds: Bounds) -> bool:
        return (
            self.most_class_logits <= bounds.logits and self.masks >= bounds.masks and self.segments >= bounds.segments
        )


@dataclass(frozen=True)
class Speed:
    """Medians of seconds for one picture, from calls that took turns."""

    image_size: tuple[int, int]
    eager: float
    exported: float
    eager_processor: float  # time of all threads
    exported_processor: float

    @property
    def ratio(self) -> float:
        """How many times faster the exported model is, by processor time: other programs do not count."""
        return self.eager_processor / self.exported_processor

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}


def parity_sizes(side: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Sizes of pictures and of their results: square, wide, tall and odd, and one whose result is resized."""
    wide, tall = (side, side * 3 // 2), (side * 4 // 3 + 5, side - 3)
    return [((side, side), (side, side)), (wide, wide), (tall, tall), (wide, (side * 5 // 4, side * 15 // 8))]


def parity_picture(size: tuple[int, int], seed: int = 0) -> Tensor:
    """(3, h, w) uint8 RGB: discs of many colors and sizes on a ramp with noise."""
    generator = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows / height, columns / width, (rows + columns) / (height + width)], axis=-1)
    picture = 60 + 120 * ramp + generator.normal(0, 8, (height, width, 3))
    for _ in range(6):
        y, x = generator.uniform(0, height), generator.uniform(0, width)
        radius = generator.uniform(0.05, 0.25) * min(size)
        picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = generator.uniform(0, 255, 3)
    return torch.from_numpy(picture.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


@torch.inference_mode()
def compare(
    eager: OneTask,
    exported: ExportedModel,
    sizes: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    task: Task,
    classes: Sequence[ClassInfo],
    *,
    is_bgr: bool,
) -> list[Agreement]:
    """Both models on one picture of every size."""
    agreements = []
    for seed, (image_size, output_size) in enumerate(sizes):
        picture = parity_picture(image_size, seed)
        sample = {"image": picture, "height": output_size[0], "width": output_size[1]}
        sample_of_eager = sample | {"image": picture.flip(0) if is_bgr else picture}
        expected = eager.model.predict([sample_of_eager])[0]
        masks = expected.mask_logits(torch.arange(len(expected.class_logits)))
        # Of a batch, whose pictures must not disturb each other, and of another number than was traced.
        batch = torch.stack([picture, picture.flip(2), picture.flip(1)])
        found = {name: value[0].float() for name, value in exported.outputs(batch, output_size).items()}
        class_logits_Q = (found["class_logits"] - expected.class_logits).abs().amax(dim=1)
        segments = segmentation_of(eager([sample_of_eager])[0], task, classes)
        agreements.append(
            Agreement(
                image_size=image_size,
                output_size=output_size,
                class_logits=float(class_logits_Q.max()),
                most_class_logits=float(class_logits_Q.quantile(MOST, interpolation="lower")),
                mask_logits=float((found["mask_logits"] - masks).abs().max()),
                masks=float(((found["mask_logits"] > 0) == (masks > 0)).float().mean()),
                num_segments=len(segments.segments),
                segments=_agreement(segments, segmentation_of(exported([sample])[0], task, classes)),
            )
        )
    return agreements


@torch.inference_mode()
def compare_speed(
    eager: OneTask, exported: ExportedModel, image_size: tuple[int, int], *, num_rounds: int = 7
) -> Speed:
    """Both models in turns, after a call of each that is not counted."""
    sample = {"image": parity_picture(image_size), "height": image_size[0], "width": image_size[1]}
    times: dict[str, list[tuple[float, float]]] = {"eager": [], "exported": []}
    for _ in range(num_rounds + 1):
        for name, model in (("eager", eager), ("exported", exported)):
            start, processor_start = time.perf_counter(), time.process_time()
            model([sample])
            times[name].append((time.perf_counter() - start, time.process_time() - processor_start))
    medians = {
        name: [statistics.median(values) for values in zip(*pairs[1:], strict=True)] for name, pairs in times.items()
    }
    return Speed(image_size, medians["eager"][0], medians["exported"][0], medians["eager"][1], medians["exported"][1])


def _agreement(expected: Segmentation, found: Segmentation) -> float:
    if expected.task == "instance":
        return _agreement_of_instances(expected, found)
    assert expected.label_map is not None and found.label_map is not None, "these tasks give maps"
    same: NDArray[np.bool_]
    if expected.task == "semantic":
        same = expected.label_map == found.label_map
    else:
        # Which number a segment has does not matter: it is the same if the masks are.
        overlaps = _overlaps(expected, found)
        partner = np.array([0, *(1 + row.argmax() if row.max(initial=0) >= SAME_MASK else -1 for row in overlaps)])
        same = partner[expected.label_map] == found.label_map
    return float(same.mean())


def _agreement_of_instances(expected: Segmentation, found: Segmentation) -> float:
    scores = np.array([segment.score or 0.0 for segment in expected.segments])
    if not (scores >= WORTH_COMPARING).any():
        return 1.0
    others = np.array([segment.score or 0.0 for segment in found.segments])
    is_partner = (_overlaps(expected, found) >= SAME_MASK) & (np.abs(scores[:, None] - others) <= SAME_SCORE)
    weights = np.where(scores >= WORTH_COMPARING, scores, 0)
    return float((weights * is_partner.any(axis=1)).sum() / weights.sum())


def _overlaps(expected: Segmentation, found: Segmentation) -> NDArray[np.float64]:
    """Intersection over union of all pairs of segments, 0 where classes differ."""
    if not expected.segments or not found.segments:
        return np.zeros((len(expected.segments), len(found.segments)))
    rles = [[segment.mask for segment in result.segments] for result in (expected, found)]
    overlaps = coco_mask.iou(*rles, [0] * len(rles[1]))
    classes = [np.array([segment.category for segment in result.segments]) for result in (expected, found)]
    return np.where(classes[0][:, None] == classes[1], overlaps, 0)
