"""Baselines that classify every pixel (MaskFormer, arXiv:2107.06278, Sec. 4), for Detectron2's `SemanticSegmentor`.

Both are MaskFormer without mask classification: `PerPixelBaselineHead` is its pixel decoder, `PerPixelBaselinePlusHead`
also its transformer decoder, with one query for each class.
"""
# N images, K classes, E width of the per-pixel embeddings, (h, w) cells at stride 4, (H, W) pixels of the padded image.

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn

from ..transformer_decoder import StandardTransformerDecoder
from .mask_former_head import build_pixel_decoder, decoder_input_channels, pick_decoder_input, pixel_decoder_inputs

__all__ = ["PerPixelBaselineHead", "PerPixelBaselinePlusHead", "per_pixel_loss"]

UPSAMPLING = 4  # from cells to pixels; published models have it whatever MODEL.SEM_SEG_HEAD.COMMON_STRIDE says


def per_pixel_loss(logits_NKhw: Tensor, labels_NHW: Tensor, ignore_value: int) -> Tensor:
    """Cross-entropy averaged over the pixels that have a label, in float32; 0 where no pixel has one.

    Args:
        logits_NKhw: at stride 4.
        labels_NHW: int64 in 0..K-1, or `ignore_value`.
    """
    height, width = labels_NHW.shape[-2:]
    # Sides that 4 does not divide leave the last row or column of cells partly outside the image.
    logits_NKHW = _upsampled(logits_NKhw.float())[..., :height, :width]
    total = F.cross_entropy(logits_NKHW, labels_NHW, ignore_index=ignore_value, reduction="sum")
    return total / (labels_NHW != ignore_value).sum().clamp(min=1)


class _PerPixelHead(nn.Module):
    """What both heads share: the contract of a head of `SemanticSegmentor`, and the loss."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
    ) -> None:
        """Args:
        in_features: backbone maps that are read.
        pixel_decoder: see `PIXEL_DECODER_REGISTRY`.
        predictor: see `_logits_of_layers` of the subclass.
        num_classes: K.
        ignore_value: label of pixels without class.
        loss_weight: factor of every loss.
        """
        super().__init__()
        self.in_features = in_features
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.num_classes = num_classes
        self.ignore_value = ignore_value  # SemanticSegmentor pads labels with it
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        inputs = pixel_decoder_inputs(cfg, input_shape)
        return {
            "in_features": list(inputs),
            "pixel_decoder": build_pixel_decoder(cfg, inputs),
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Results and losses, as `SemanticSegmentor` reads them.

        Args:
            features: backbone maps, name -> (N, C, h, w).
            targets: while training, labels (N, H, W) int64 in 0..K-1 or `ignore_value`.

        Returns:
            While training nothing and the weighted losses: `loss_sem_seg`, and `loss_sem_seg_i` of each earlier layer i
            of the transformer decoder. Else the logits (N, K, 4*h, 4*w) and no losses.
        """
        if not self.training:
            return _upsampled(self._logits_of_layers(features)[-1]), {}
        if targets is None:
            raise ValueError(
                f"there is no 'sem_seg' to train {type(self).__name__} on; INPUT.DATASET_MAPPER_NAME must name a "
                "mapper that makes it, such as mask_former_semantic"
            )
        self._check_labels(targets)
        *earlier, last = (
            per_pixel_loss(logits_NKhw, targets, self.ignore_value) * self.loss_weight
            for logits_NKhw in self._logits_of_layers(features)
        )
        return None, {"loss_sem_seg": last, **{f"loss_sem_seg_{layer}": loss for layer, loss in enumerate(earlier)}}

    def _logits_of_layers(self, features: dict[str, Tensor]) -> list[Tensor]:
        """(N, K, h, w) of each prediction layer; in inference only of the last."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it classifies pixels")

    def _check_labels(self, labels_NHW: Tensor) -> None:
        # Waits for the device once per step: there, a label out of range would end the process without naming itself.
        is_wrong = ((labels_NHW < 0) | (labels_NHW >= self.num_classes)) & (labels_NHW != self.ignore_value)
        if is_wrong.any():
            raise ValueError(
                f"'sem_seg' has the labels {labels_NHW[is_wrong].unique().tolist()}; allowed are "
                f"0..{self.num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES={self.num_classes}) and "
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE={self.ignore_value}"
            )


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(_PerPixelHead):
    """A linear classifier on the per-pixel embeddings."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        predictor = Conv2d(head.MASK_DIM, head.NUM_CLASSES, kernel_size=1)
        weight_init.c2_msra_fill(predictor)
        return {**super().from_config(cfg, input_shape), "predictor": predictor}

    def _logits_of_layers(self, features: dict[str, Tensor]) -> list[Tensor]:
        pixel_features = {name: features[name] for name in self.in_features}
        mask_features, _, _ = self.pixel_decoder.forward_features(pixel_features)  # type: ignore[operator]
        return [self.predictor(mask_features)]


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(_PerPixelHead):
    """MaskFormer's decoder with one query per class, whose mask logits are the class scores."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pixel_decoder: nn.Module,
        predictor: StandardTransformerDecoder,
        decoder_input: str,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
    ) -> None:
        """Args:
        in_features, pixel_decoder, num_classes, ignore_value, loss_weight: see `_PerPixelHead`.
        predictor: of K queries, without mask classification.
        decoder_input: what the predictor reads: "transformer_encoder", "pixel_embedding" or the name of a backbone map.
        """
        super().__init__(
            in_features=in_features,
            pixel_decoder=pixel_decoder,
            predictor=predictor,
            num_classes=num_classes,
            ignore_value=ignore_value,
            loss_weight=loss_weight,
        )
        self.decoder_input = decoder_input

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        num_queries, num_classes = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if num_queries != num_classes:
            raise ValueError(
                f"PerPixelBaselinePlusHead has one query for each class: MODEL.MASK_FORMER.NUM_OBJECT_QUERIES="
                f"{num_queries} must equal MODEL.SEM_SEG_HEAD.NUM_CLASSES={num_classes}"
            )
        # Published files of this head do not name a decoder, and the masked one cannot serve it.
        predictor = StandardTransformerDecoder(cfg, decoder_input_channels(cfg, input_shape), mask_classification=False)
        return {
            **super().from_config(cfg, input_shape),
            "predictor": predictor,
            "decoder_input": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
        }

    def _logits_of_layers(self, features: dict[str, Tensor]) -> list[Tensor]:
        pixel_features = {name: features[name] for name in self.in_features}
        decoded = self.pixel_decoder.forward_features(pixel_features)  # type: ignore[operator]
        decoder_features = pick_decoder_input(self.decoder_input, features, decoded)
        predictions = self.predictor(decoder_features, decoded[0], all_layers=self.training)
        return [predictions.masks.layer(layer).dense().squeeze(2) for layer in range(len(predictions.class_logits))]


def _upsampled(logits_NKhw: Tensor) -> Tensor:
    return F.interpolate(logits_NKhw, scale_factor=UPSAMPLING, mode="bilinear", align_corners=False)
