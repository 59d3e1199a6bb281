"""The augmented copies of a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fvcore.transforms import HFlipTransform

__all__ = ["Copy", "Mapper", "augmented_copies"]

Sample = dict[str, Any]

#: One model input, with `height` and `width`, in; its augmented copies out, each with the `transforms` that made it.
#: Detectron2's `DatasetMapperTTA` is one.
Mapper = Callable[[Sample], list[Sample]]


class Copy(NamedTuple):
    sample: Sample  # a model input; `height` and `width`, the size of the result, are those of the picture
    is_mirrored: bool  # left and right exchanged

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.sample["image"].shape[-2:]
        return height, width


def augmented_copies(single: Sample, mapper: Mapper) -> list[Copy]:
    """All copies, in the mapper's order.

    As in the published evaluation, what is resized is not the original picture but the one that the test mapper
    already resized: the multi-scale figures depend on it.

    Args:
        single: a model input; without `height` and `width` the picture's own size is meant.
    """
    if isinstance(single["image"], (list, tuple)):
        raise ValueError("TEST.AUG: test-time augmentation takes single images, got a clip; set TEST.AUG.ENABLED False")
    height, width = single["image"].shape[-2:]
    samples = mapper({"height": height, "width": width, **single})
    if not samples:
        raise ValueError("test-time augmentation made no copy of the picture; TEST.AUG.MIN_SIZES is empty")
    return [Copy(sample, _is_mirrored(sample.pop("transforms").transforms)) for sample in samples]


def _is_mirrored(transforms: list[Any]) -> bool:
    return sum(isinstance(transform, HFlipTransform) for transform in transforms) % 2 == 1
