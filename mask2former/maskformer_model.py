"""The whole model (Mask2Former, arXiv:2112.01527): normalize, backbone, head, then losses or results."""
# B clips, T frames of each (1 for images), N = B*T frames with the frame index fastest, Q queries, K classes,
# (H, W) pixels of the padded frame, (h, w) pixels of an image as it was given, (h4, w4) cells at stride 4.

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from .modeling.backbone.resnet_checkpointing import checkpoint_blocks
from .modeling.compilation import compile_network
from .modeling.criterion import LossNormalizer, SetCriterion
from .modeling.cuda_graphs import CudaGraphs
from .modeling.inference_layers import use_inference_layers
from .modeling.inference_precision import inference_dtype
from .modeling.masks import MaskLogits
from .modeling.matcher import HungarianMatcher
from .modeling.meta_arch.mask_former_head import MaskFormerHead
from .modeling.postprocessing import (
    INSTANCE_OUTPUTS,
    SEMANTIC_RESULTS,
    MaskSizes,
    ResultSettings,
    image_results,
    video_inference,
)
from .modeling.targets import ground_truth, make_target

__all__ = ["ImagePrediction", "MaskFormer", "MaskSizes"]

Sample = dict[str, Any]


class ImagePrediction(NamedTuple):
    """What the network says about one image or clip, before the rules of the tasks make results of it."""

    class_logits: Tensor  # (Q, K + 1) float32, last class = "no object"
    masks: MaskLogits  # float32; one clip, of an image one frame, embeddings (1, Q, C)
    sizes: MaskSizes

    def mask_logits(self, queries: Tensor) -> Tensor:
        """Of the queries of these indices (R,), at stride 4 of the padded frame: (R, h4, w4)."""
        return self.masks.select(0, queries).squeeze(1)


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification for semantic, panoptic and instance segmentation."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: MaskFormerHead,
        criterion: SetCriterion,
        num_queries: int,
        deep_supervision: bool,
        metadata: Any,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        semantic_on: bool,
        instance_on: bool,
        panoptic_on: bool,
        sem_seg_postprocess_before_inference: bool,
        object_mask_threshold: float,
        overlap_threshold: float,
        test_topk_per_image: int,
        semantic_output: str,
        instance_output: str,
        memory_budget_mb: int,
        inference_dtype: torch.dtype | None = None,
        is_video: bool = False,
        compiled: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        """Args:
        backbone: images (N, 3, H, W) -> maps by name.
        sem_seg_head: has `predict(features, *, num_frames, all_layers) -> Predictions`.
        criterion: predictions and targets -> weighted losses.
        num_queries: Q.
        deep_supervision: whether every prediction layer has a loss or only the last.
        metadata: of the training dataset; tells things from stuff in panoptic results.
        size_divisibility: frames are padded to a multiple of this; negative takes the backbone's own value.
        pixel_mean, pixel_std: per channel, in the range 0..255 of the input.
        semantic_on, instance_on, panoptic_on: which results inference gives.
        sem_seg_postprocess_before_inference: resize masks to the output size before the semantic merge instead of
            resizing the merged map; with instance or panoptic results it is always before.
        object_mask_threshold, overlap_threshold: see `panoptic_inference`.
        test_topk_per_image: largest number of instances.
        semantic_output: what the semantic result is, a name in `SEMANTIC_RESULTS`.
        instance_output: what the masks of instances are, one of `INSTANCE_OUTPUTS`.
        memory_budget_mb: MiB that inference may take for its blocks of rows, beside the network and the results.
        inference_dtype: of autocast while the network runs in inference; None leaves that to the caller.
        is_video: inference takes one clip and gives its instances instead of the results of images.
        compiled: see `compile_network`.
        cuda_graphs: whether inference on a GPU replays recordings, see `CudaGraphs`; not together with `compiled`,
            which launches kernels of its own.
        """
        super().__init__()
        for key, value, allowed in (
            ("SEMANTIC_OUTPUT", semantic_output, SEMANTIC_RESULTS),
            ("INSTANCE_OUTPUT", instance_output, INSTANCE_OUTPUTS),
        ):
            if value not in allowed:
                raise ValueError(f"MODEL.MASK_FORMER.TEST.{key}={value!r} is unknown; choose from {', '.join(allowed)}")
        if memory_budget_mb <= 0:
            raise ValueError(f"MODEL.MASK_FORMER.TEST.MEMORY_BUDGET_MB must be above 0, got {memory_budget_mb}")
        resize_first = sem_seg_postprocess_before_inference or instance_on or panoptic_on
        if not (semantic_on or resize_first or is_video):
            raise ValueError(
                "nothing to infer: MODEL.MASK_FORMER.TEST.SEMANTIC_ON, INSTANCE_ON and PANOPTIC_ON are all False "
                "(allowed only with SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE True)"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        for network in (backbone, sem_seg_head):
            use_inference_layers(network)
        if compiled:
            compile_network(backbone, sem_seg_head)
        self.criterion = criterion
        self.num_queries = num_queries
        self.deep_supervision = deep_supervision
        self.metadata = metadata
        # A backbone says 0 when any size will do.
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.semantic_on = semantic_on
        self.instance_on = instance_on
        self.panoptic_on = panoptic_on
        self.resize_first = resize_first
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.test_topk_per_image = test_topk_per_image
        self.semantic_output = semantic_output
        self.instance_output = instance_output
        self.memory_budget_mb = memory_budget_mb
        self.inference_dtype = inference_dtype
        self.is_video = is_video
        self._cuda_graphs = CudaGraphs(enabled=cuda_graphs and not compiled)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        if cfg.MODEL.RESNETS.USE_CHECKPOINT:
            checkpoint_blocks(backbone)
        node = cfg.MODEL.MASK_FORMER
        weights = {"class_weight": node.CLASS_WEIGHT, "mask_weight": node.MASK_WEIGHT, "dice_weight": node.DICE_WEIGHT}
        criterion = SetCriterion(
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            matcher=HungarianMatcher(num_points=node.TRAIN_NUM_POINTS, **weights),
            loss_weights={"loss_ce": node.CLASS_WEIGHT, "loss_mask": node.MASK_WEIGHT, "loss_dice": node.DICE_WEIGHT},
            no_object_weight=node.NO_OBJECT_WEIGHT,
            num_points=node.TRAIN_NUM_POINTS,
            oversample_ratio=node.OVERSAMPLE_RATIO,
            importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
        )
        if not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN is empty; its first dataset says which classes are things, in tests too")
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": criterion,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "deep_supervision": node.DEEP_SUPERVISION,
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]),
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "semantic_on": node.TEST.SEMANTIC_ON,
            "instance_on": node.TEST.INSTANCE_ON,
            "panoptic_on": node.TEST.PANOPTIC_ON,
            "sem_seg_postprocess_before_inference": node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "object_mask_threshold": node.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": node.TEST.OVERLAP_THRESHOLD,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "semantic_output": node.TEST.SEMANTIC_OUTPUT,
            "instance_output": node.TEST.INSTANCE_OUTPUT,
            "memory_budget_mb": node.TEST.MEMORY_BUDGET_MB,
            "compiled": cfg.MODEL.COMPILE,
            "cuda_graphs": cfg.MODEL.CUDA_GRAPHS,
            "inference_dtype": inference_dtype(node.TEST.PRECISION, torch.device(cfg.MODEL.DEVICE).type),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: Sequence[Sample], normalizer: LossNormalizer | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Losses while training, else results.

        Args:
            batched_inputs: one dict per image or clip: `image`, (3, h, w) RGB in 0..255 or a list of T such frames;
                while training `instances`, see `make_target`; for inference optionally `height` and `width`, the size
                of the results (default: that of the image).
            normalizer: from `loss_normalizer`, when this batch is only a part of an optimizer step.

        Returns:
            While training the weighted losses, see `SetCriterion`. Else one dict per image with, as configured,
            `sem_seg` (K, height, width), `panoptic_seg` (map, segments_info) and `instances`; see
            `modeling.postprocessing`. With MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT "labels" `sem_seg` is a map
            (height, width) and `sem_seg_confidence` comes with it; with "probabilities" `sem_seg_entropy` does. With
            MODEL.MASK_FORMER.TEST.INSTANCE_OUTPUT "run_lengths" the masks of instances are `RunLengthMasks`.
            A model of videos takes one clip and gives the dict of `video_inference`.
        """
        if self.training:
            images, num_frames = self._images(batched_inputs)
            return self._losses(batched_inputs, images, num_frames, normalizer)
        if self.is_video and len(batched_inputs) != 1:
            raise ValueError(f"videos are segmented one at a time, got a batch of {len(batched_inputs)}")
        predictions = self.predict(batched_inputs)
        with torch.amp.autocast(device_type=self.device.type, enabled=False):
            if self.is_video:
                return video_inference(*predictions[0])
            return [self.inference(*prediction) for prediction in predictions]

    def predict(self, batched_inputs: Sequence[Sample]) -> list[ImagePrediction]:
        """The last layer's predictions for each image or clip; input as for `forward` in evaluation."""
        images, num_frames = self._images(batched_inputs)
        if num_frames > 1 and not self.is_video:
            raise ValueError(
                f"inference takes single images, got clips of {num_frames} frames; models of videos have "
                "MODEL.META_ARCHITECTURE VideoMaskFormer"
            )
        with self._inference_autocast():
            pixels = images.tensor.contiguous(memory_format=self._memory_format())
            class_logits_BQK, masks = self._run_network(pixels, num_frames)
        predictions = []
        for index, sample in enumerate(batched_inputs):
            image_size = _size(_frames(sample)[0])
            output_size = (int(sample.get("height", image_size[0])), int(sample.get("width", image_size[1])))
            sizes = MaskSizes(_size(images.tensor), image_size, output_size)
            masks_of_image = MaskLogits(*(factor[index : index + 1].float() for factor in masks))
            predictions.append(ImagePrediction(class_logits_BQK[index].float(), masks_of_image, sizes))
        return predictions

    def _run_network(self, pixels: Tensor, num_frames: int) -> tuple[Tensor, MaskLogits]:
        """Class logits (B, Q, K + 1) and masks of the last layer."""

        def network(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            class_logits_LBQK, masks = self.sem_seg_head.predict(self.backbone(pixels), num_frames=num_frames)
            return class_logits_LBQK[-1], *masks.layer(-1)

        class_logits_BQK, *masks = self._cuda_graphs.run(self, network, pixels, num_frames)
        return class_logits_BQK, MaskLogits(*masks)

    def train(self, mode: bool = True) -> MaskFormer:
        """As of every module; what was remembered of the weights is forgotten, however they were changed."""
        self._cuda_graphs.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._cuda_graphs.clear()  # what moves to another device leaves nothing behind
        return super()._apply(*args, **kwargs)

    def inference(self, class_logits: Tensor, masks: MaskLogits, sizes: MaskSizes) -> dict[str, Any]:
        """The configured results of one image.

        Args:
            class_logits: (Q, K + 1).
            masks: one clip of one frame, embeddings (1, Q, C).
            sizes: how masks are resized.
        """
        prediction = ImagePrediction(class_logits, masks, sizes)
        return image_results(class_logits, prediction.mask_logits, sizes, self.result_settings)

    @property
    def result_settings(self) -> ResultSettings:
        """What `inference` gives, and by which rules."""
        return ResultSettings(
            semantic_output=self.semantic_output if self.semantic_on else None,
            instance_output=self.instance_output if self.instance_on else None,
            panoptic_on=self.panoptic_on,
            resize_first=self.resize_first,
            thing_ids=self.thing_ids if self.panoptic_on else None,
            object_mask_threshold=self.object_mask_threshold,
            overlap_threshold=self.overlap_threshold,
            topk=self.test_topk_per_image,
            memory_budget=self.memory_budget_mb * 2**20,
        )

    def loss_normalizer(self, micro_batches: Sequence[Sequence[Sample]]) -> LossNormalizer:
        """What the losses of an optimizer step over these micro-batches are divided by; all workers must call it."""
        num_targets = [len(ground_truth(sample).gt_classes) for micro_batch in micro_batches for sample in micro_batch]
        return self.criterion.normalizer(num_targets, self.num_queries)

    @property
    def thing_ids(self) -> list[int]:
        """Contiguous ids of the classes that are things in the training dataset."""
        contiguous_ids = getattr(self.metadata, "thing_dataset_id_to_contiguous_id", None)
        if contiguous_ids is None:
            raise ValueError(
                f"the metadata of {self.metadata.name!r} (DATASETS.TRAIN[0]) does not say which classes are things: it "
                "lacks thing_dataset_id_to_contiguous_id, which MODEL.MASK_FORMER.TEST.PANOPTIC_ON needs"
            )
        return sorted(contiguous_ids.values())

    def _inference_autocast(self) -> AbstractContextManager[Any]:
        if self.inference_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.inference_dtype)

    def _memory_format(self) -> torch.memory_format:
        """Channels last where convolutions are faster so: on a GPU in training only in half precision."""
        is_inference = not torch.is_grad_enabled()
        is_faster = self.device.type == "cpu" or is_inference or torch.is_autocast_enabled(self.device.type)
        return torch.channels_last if is_faster else torch.contiguous_format

    def _images(self, batched_inputs: Sequence[Sample]) -> tuple[ImageList, int]:
        """All frames, normalized and then padded with zeros at the right and bottom: ((N, 3, H, W), T)."""
        clips = [_frames(sample) for sample in batched_inputs]
        num_frames = {len(frames) for frames in clips}
        if len(num_frames) != 1:
            raise ValueError(f"the clips of a batch must have the same number of frames, got {sorted(num_frames)}")
        frames = [
            (frame.to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
            for clip in clips
            for frame in clip
        ]
        return ImageList.from_tensors(frames, self.size_divisibility), num_frames.pop()

    def _losses(
        self, batched_inputs: Sequence[Sample], images: ImageList, num_frames: int, normalizer: LossNormalizer | None
    ) -> dict[str, Tensor]:
        # Targets first, so that bad ground truth is reported before time is spent on the network.
        targets = [
            make_target(
                sample,
                num_classes=self.criterion.num_classes,
                num_frames=num_frames,
                image_size=_size(_frames(sample)[0]),
                padded_size=_size(images.tensor),
                device=self.device,
            )
            for sample in batched_inputs
        ]
        if normalizer is None:  # workers add it up while the network runs
            normalizer = self.criterion.normalizer([len(target.labels) for target in targets], self.num_queries)
        features = self.backbone(images.tensor.contiguous(memory_format=self._memory_format()))
        predictions = self.sem_seg_head.predict(features, num_frames=num_frames, all_layers=self.deep_supervision)
        return self.criterion(predictions, targets, normalizer)


@META_ARCH_REGISTRY.register()
def VideoMaskFormer(cfg: CfgNode) -> MaskFormer:
    """The published name of the model of videos (arXiv:2112.10764): the same, with another rule of inference.

    What tells the frames of a clip apart is the decoder's choice of positions
    (MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME).
    """
    return MaskFormer(cfg, is_video=True)


def _frames(sample: Sample) -> Sequence[Tensor]:
    image = sample["image"]
    return image if isinstance(image, (list, tuple)) else [image]


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
