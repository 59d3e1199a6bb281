"""The two implementations that are measured, with their stages under a stopwatch."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray

from mask2former.benchmark.transformers_config import transformers_config
from mask2former.deploy.predictor import Predictor
from mask2former.maskformer_model import MaskFormer
from mask2former.modeling.transformers_weights import from_transformers

__all__ = ["OurSide", "Pictures", "Side", "Stopwatch", "TransformersSide"]

Pictures = list[NDArray[np.uint8]]


class Stopwatch:
    """Adds up the seconds spent in named stages; on CUDA it waits for the device before it looks at the clock."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        #: False times nothing but "total": waiting for the device between stages would slow that down.
        self.times_stages = True
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if not self.times_stages and name != "total":
            yield
            return
        started = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - started

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Counts every call of `owner.method` to a stage."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Side(ABC):
    """One implementation; calling it segments pictures and returns results at their size."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stopwatch = Stopwatch(device)

    @abstractmethod
    def __call__(self, pictures: Pictures) -> Any:
        """Results in the form of the implementation, one per picture."""

    @abstractmethod
    def logits(self, pictures: Pictures) -> dict[str, torch.Tensor]:
        """`class` (B, Q, K + 1) and `mask` (B, Q, h4, w4) logits of the last layer."""


class OurSide(Side):
    """This project's predictor; pictures keep their size."""

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST = 0
        cfg.freeze()
        self.predictor = Predictor.from_config(cfg)
        model = self.predictor.model
        if not isinstance(model, MaskFormer):
            raise ValueError(f"only MODEL.META_ARCHITECTURE=MaskFormer has these stages, got {type(model).__name__}")
        self.model = model
        super().__init__(model.device)
        self.stopwatch.watch(self.predictor, "_prepare", "pre-processing")
        self.stopwatch.watch(model, "_images", "pre-processing")
        self.stopwatch.watch(model.backbone, "forward", "backbone")
        self.stopwatch.watch(model.sem_seg_head.pixel_decoder, "forward_features", "pixel decoder")
        self.stopwatch.watch(model.sem_seg_head.predictor, "forward", "decoder")
        self.stopwatch.watch(model, "inference", "post-processing")

    def __call__(self, pictures: Pictures) -> Any:
        with self.stopwatch.stage("total"):
            return self.predictor(pictures)

    @torch.inference_mode()
    def logits(self, pictures: Pictures) -> dict[str, torch.Tensor]:
        images, _ = self.model._images([self.predictor._prepare(picture, 0) for picture in pictures])
        outputs = self.model.sem_seg_head(self.model.backbone(images.tensor))
        return {"class": outputs["pred_logits"], "mask": outputs["pred_masks"]}


class TransformersSide(Side):
    """transformers' model and image processor, with the tasks and thresholds of ours; gives ours its weights."""

    def __init__(self, cfg: CfgNode, ours: OurSide) -> None:
        import transformers

        transformers.logging.set_verbosity_error()  # it doubts backbones that give the same logits as ours
        super().__init__(ours.device)
        self.model = transformers.Mask2FormerForUniversalSegmentation(transformers_config(cfg)).eval().to(self.device)
        self._processor = transformers.Mask2FormerImageProcessor(
            do_resize=False,
            image_mean=[value / 255 for value in cfg.MODEL.PIXEL_MEAN],
            image_std=[value / 255 for value in cfg.MODEL.PIXEL_STD],
        )
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"
        self._ours = ours.model
        self._num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        missing, unexpected = ours.model.load_state_dict(from_transformers(self.model.state_dict()), strict=False)
        if unexpected or any(not name.endswith("relative_position_index") for name in missing):
            raise ValueError(f"the two models differ: only ours has {missing}, only transformers {unexpected}")
        module = self.model.model
        self.stopwatch.watch(module.pixel_level_module.encoder, "forward", "backbone")
        self.stopwatch.watch(module.pixel_level_module.decoder, "forward", "pixel decoder")
        self.stopwatch.watch(module.transformer_module, "forward", "decoder")
        self.stopwatch.watch(self, "_prepare", "pre-processing")
        self.stopwatch.watch(self, "_results", "post-processing")

    @torch.inference_mode()
    def __call__(self, pictures: Pictures) -> Any:
        with self.stopwatch.stage("total"):
            outputs = self.model(pixel_values=self._prepare(pictures))
            return self._results(outputs, [picture.shape[:2] for picture in pictures])

    @torch.inference_mode()
    def logits(self, pictures: Pictures) -> dict[str, torch.Tensor]:
        outputs = self.model(pixel_values=self._prepare(pictures))
        return {"class": outputs.class_queries_logits, "mask": outputs.masks_queries_logits}

    def _prepare(self, pictures: Pictures) -> torch.Tensor:
        if self._is_bgr:
            pictures = [picture[:, :, ::-1].copy() for picture in pictures]
        pixels: torch.Tensor = self._processor(pictures, return_tensors="pt")["pixel_values"].to(self.device)
        height, width = (-side % 32 for side in pixels.shape[-2:])
        return torch.nn.functional.pad(pixels, (0, width, 0, height))

    def _results(self, outputs: Any, sizes: list[tuple[int, int]]) -> list[Any]:
        results: list[Any] = []
        if self._ours.semantic_on:
            results.append(self._processor.post_process_semantic_segmentation(outputs, target_sizes=sizes))
        if self._ours.panoptic_on:
            results.append(
                self._processor.post_process_panoptic_segmentation(
                    outputs,
                    threshold=self._ours.object_mask_threshold,
                    overlap_mask_area_threshold=self._ours.overlap_threshold,
                    label_ids_to_fuse=set(range(self._num_classes)) - set(self._ours.thing_ids),
                    target_sizes=sizes,
                )
            )
        if self._ours.instance_on:
            results.append(
                self._processor.post_process_instance_segmentation(
                    outputs, threshold=0.0, target_sizes=sizes, return_binary_maps=True
                )
            )
        return results
