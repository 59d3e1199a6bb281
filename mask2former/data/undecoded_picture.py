"""A picture that is decoded when the first of its transforms needs pixels, and no larger than that one makes it."""

# (H, W) pixels of the picture as it is stored.

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray

from mask2former.data.reading import read_image, read_shrunken_image

__all__ = ["UndecodedPicture"]

#: Transforms that can as well come after decoding, whatever its scale.
_POSTPONED = (T.NoOpTransform, T.HFlipTransform, T.VFlipTransform)


class UndecodedPicture(T.AugInput):  # type: ignore[misc]  # Detectron2 has no types
    """Takes the place of an `AugInput`; augmentations draw the same random numbers as for the decoded picture.

    Attributes:
        image: until the picture is decoded an array that has its shape, but no memory.
    """

    image: NDArray[np.uint8]
    sem_seg: NDArray[Any] | None

    def __init__(self, path: str, image_format: str, size: tuple[int, int], sem_seg: NDArray[Any] | None) -> None:
        """
        Args:
            size: (H, W).
            sem_seg: (H, W) labels, transformed with the picture.
        """
        super().__init__(np.broadcast_to(np.uint8(0), (*size, 3)), sem_seg=sem_seg)
        self._path = path
        self._image_format = image_format
        self._postponed: list[T.Transform] | None = []  # None: it is decoded

    def transform(self, tfm: T.Transform) -> None:
        """Apply a transform to the picture and to the labels."""
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)
        if self._postponed is not None and type(tfm) in _POSTPONED:
            self._postponed.append(tfm)
            return
        if self._postponed is not None and type(tfm) is T.ResizeTransform:
            self._decode(read_shrunken_image(self._path, self._image_format, (tfm.new_h, tfm.new_w)))
            height, width = self.image.shape[:2]
            tfm = T.ResizeTransform(height, width, tfm.new_h, tfm.new_w, tfm.interp)
        self.image = tfm.apply_image(self.decoded())

    def decoded(self) -> NDArray[np.uint8]:
        """The picture after the transforms so far."""
        if self._postponed is not None:
            self._decode(read_image(self._path, self._image_format))
        return self.image

    def _decode(self, image: NDArray[np.uint8]) -> None:
        assert self._postponed is not None, "a picture is decoded once"
        for transform in self._postponed:
            image = transform.apply_image(image)
        self.image, self._postponed = image, None
