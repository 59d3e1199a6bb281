"""From pictures as arrays to results: loads a model, prepares pictures as in evaluation, and runs them in batches."""

# H, W pixels of a picture; h, w pixels after resizing for the network.

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import Tensor, nn

from mask2former.config import on_available_device
from mask2former.modeling.checkpoint import MaskFormerCheckpointer
from mask2former.registry import check_model_names

__all__ = ["Predictor"]

Prediction = dict[str, Any]


class Predictor:
    """Segments pictures of any size with one model.

    Args:
        model: answers Detectron2's input format; it is switched to evaluation and stays on its device.
        metadata: of the dataset whose classes the model knows: names and colors.
        min_size: the shorter side in pixels that pictures are resized to (INPUT.MIN_SIZE_TEST); 0 keeps their size.
        max_size: the longer side is at most this (INPUT.MAX_SIZE_TEST).
        channel_order: what the model was trained on (INPUT.FORMAT), "RGB" or "BGR". Callers always pass RGB.
    """

    def __init__(
        self, *, model: nn.Module, metadata: Metadata, min_size: int, max_size: int, channel_order: str = "RGB"
    ) -> None:
        if channel_order not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT={channel_order!r} is unknown; choose RGB or BGR")
        self.model = model.eval()
        self.metadata = metadata
        self._resize = T.ResizeShortestEdge([min_size, min_size], max_size)
        self._channel_order = channel_order

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Predictor:
        """Builds the model, loads MODEL.WEIGHTS, and takes classes from the first of DATASETS.TEST (else of TRAIN).

        Runs on MODEL.DEVICE, or on the CPU where that asks for a GPU that is not there.
        """
        check_model_names(cfg)
        model = build_model(on_available_device(cfg))
        checkpointer = MaskFormerCheckpointer.from_config(cfg, model)
        checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
        dataset_names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        return cls(
            model=model,
            metadata=MetadataCatalog.get(dataset_names[0]) if dataset_names else Metadata(),
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            channel_order=cfg.INPUT.FORMAT,
        )

    def with_model(self, model: nn.Module) -> Predictor:
        """The same preparation of pictures for another model."""
        other = copy.copy(self)
        other.model = model.eval()
        return other

    @overload
    def __call__(self, images: NDArray[np.uint8]) -> Prediction: ...

    @overload
    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]: ...

    def __call__(self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> Prediction | list[Prediction]:
        """Segments one picture or several.

        Pictures that have the same size after resizing go through the network together, others apart: no result depends
        on what else is in the call.

        Args:
            images: (H, W, 3) uint8 RGB, one array or a sequence of arrays of any sizes.

        Returns:
            For each picture, what the model gives: `panoptic_seg`, `instances` and `sem_seg` as far as they are
            switched on, at the picture's own (H, W) and on the model's device. A list if a sequence was given.

        Raises:
            ValueError: a picture has another type or shape; the message says which.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            return self._predict([images])[0]
        return self._predict(list(images))

    @torch.inference_mode()
    def _predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        inputs = [self.prepare(image, index) for index, image in enumerate(images)]
        positions: dict[torch.Size, list[int]] = {}
        for index, sample in enumerate(inputs):
            positions.setdefault(sample["image"].shape, []).append(index)
        predictions: list[Prediction] = [{} for _ in inputs]
        for members in positions.values():
            outputs = self.model([inputs[index] for index in members])
            for index, output in zip(members, outputs, strict=True):
                predictions[index] = output
        return predictions

    def prepare(self, image: NDArray[np.uint8], index: int = 0) -> dict[str, Any]:
        """A picture in the model's input format: `image` (3, h, w) uint8, and the size that the results shall have.

        Args:
            image: (H, W, 3) uint8 RGB.
            index: what an error calls the picture.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"picture {index} must be an (H, W, 3) uint8 RGB array, got {got}")
        height, width = image.shape[:2]
        if height == 0 or width == 0:
            raise ValueError(f"picture {index} has no pixels: its shape is {image.shape}")
        resized_hw3 = self.resized(image)
        if self._channel_order == "BGR":
            resized_hw3 = resized_hw3[:, :, ::-1]
        # A copy, as callers may reuse their array, whose channels come last in memory, as the network wants them.
        tensor: Tensor = torch.from_numpy(np.array(resized_hw3, order="C")).permute(2, 0, 1)
        return {"image": tensor, "height": height, "width": width}

    def resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """As large as the network gets it: (H, W, 3) -> (h, w, 3)."""
        transform = self._resize.get_transform(image)
        if isinstance(transform, T.ResizeTransform) and min(transform.new_h, transform.new_w) < 1:
            # Detectron2 rounds the short side of a very long picture down to nothing.
            transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        resized: NDArray[np.uint8] = transform.apply_image(image)
        return resized
