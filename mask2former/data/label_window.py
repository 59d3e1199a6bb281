"""Labels after a picture's transforms, looked up pixel by pixel: only what a sample shows is touched.

Flips, crops, resizing by the nearest pixel and padding treat rows and columns apart: after them, a row of the sample
shows one row of the stored labels, and a column one column.
"""

# (H, W) pixels of the labels as they are stored, (h, w) of the sample.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform, Transform
from numpy.typing import NDArray
from PIL import Image

from mask2former.data.augmentation import ColorJitterTransform

__all__ = ["LabelWindow"]

_BEYOND = -1
Indices = NDArray[np.int64]


class LabelWindow(NamedTuple):
    """Which row and column of the labels each row and column of the sample shows; -1 beyond the picture."""

    rows_h: Indices
    columns_w: Indices

    @classmethod
    def after(cls, transforms: T.TransformList, size: tuple[int, int]) -> LabelWindow | None:
        """The window that shows uint8 labels of `size` (H, W) as `transforms.apply_segmentation` makes them.

        None when there is a transform of another kind than those above, e.g. a rotation.
        """
        window: LabelWindow | None = cls(np.arange(size[0]), np.arange(size[1]))
        for transform in _flat(transforms):
            window = None if window is None else window._after_one(transform)
        return window

    def read(self, labels_HW: NDArray[Any]) -> NDArray[Any]:
        """(h, w, ...) labels of (H, W, ...); 0 beyond the picture."""
        rows, columns = _inside(self.rows_h), _inside(self.columns_w)
        axes = ((self.rows_h[rows], 0), (self.columns_w[columns], 1))
        shown = labels_HW
        # The axis that gets shorter goes first, so that the other one has less to do.
        for indices, axis in sorted(axes, key=lambda pair: len(pair[0]) / labels_HW.shape[pair[1]]):
            shown = np.take(shown, indices, axis=axis)
        size = (len(self.rows_h), len(self.columns_w))
        if shown.shape[:2] == size:
            return shown
        labels_hw = np.zeros((*size, *labels_HW.shape[2:]), dtype=labels_HW.dtype)
        labels_hw[rows, columns] = shown
        return labels_hw

    def _after_one(self, transform: Transform) -> LabelWindow | None:
        rows, columns = self
        kind = type(transform)  # exactly: a subclass may treat labels in another way
        if kind in (T.NoOpTransform, ColorJitterTransform):
            return self
        if kind is T.HFlipTransform:
            return LabelWindow(rows, columns[::-1])
        if kind is T.VFlipTransform:
            return LabelWindow(rows[::-1], columns)
        if kind is T.CropTransform:
            top, left = transform.y0, transform.x0
            return LabelWindow(rows[top : top + transform.h], columns[left : left + transform.w])
        if kind is T.ResizeTransform:
            return LabelWindow(
                rows[_nearest(len(rows), transform.new_h)], columns[_nearest(len(columns), transform.new_w)]
            )
        if kind is PadTransform and transform.seg_pad_value == 0:
            return LabelWindow(
                np.pad(rows, (transform.y0, transform.y1), constant_values=_BEYOND),
                np.pad(columns, (transform.x0, transform.x1), constant_values=_BEYOND),
            )
        return None


def _flat(transforms: T.TransformList) -> list[Transform]:
    """Lists within lists resolved."""
    return [
        inner
        for transform in transforms.transforms
        for inner in (_flat(transform) if isinstance(transform, T.TransformList) else [transform])
    ]


def _nearest(old: int, new: int) -> Indices:
    """Which of `old` pixels Pillow's nearest rule takes for each of `new` ones: it is asked, not imitated."""
    line = Image.fromarray(np.arange(old, dtype=np.int32)[None]).resize((new, 1), Image.Resampling.NEAREST)
    return np.asarray(line)[0].astype(np.int64)


def _inside(indices: Indices) -> slice:
    """The part that is not beyond the picture, which is in one piece: padding only ever joins at the ends."""
    places = np.flatnonzero(indices != _BEYOND)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0, 0)
