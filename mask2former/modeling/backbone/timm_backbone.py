"""Any feature extractor of timm as a backbone: EfficientNet, ConvNeXt, ResNet, ..., and plain Vision Transformers."""
# B pictures, C channels, (H, W) pixels, (h, w) cells of a map.

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from .simple_feature_pyramid import SimpleFeaturePyramid
from .timm_models import check_colors, create_model, describe_model, import_timm

__all__ = ["TimmBackbone"]

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
_DIVISIBILITY = 32  # the coarsest stride, and a multiple of every patch size that is accepted
_NORMS = ("", "FrozenBN", "SyncBN")

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """A model of timm with maps "res2".."res5" at strides 4, 8, 16 and 32.

    Models with maps of these strides give them as they are. A plain ViT has one resolution; its last map becomes a
    simple feature pyramid. Tensors are called as in timm's classifier after the prefix "model.", so that a file of
    timm's weights fits by the ends of the names.
    """

    model: Any  # has `forward_intermediates` and `prune_intermediate_layers`

    @configurable
    def __init__(
        self,
        *,
        name: str,
        in_channels: int = 3,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        norm: str = "",
        freeze: bool = False,
        checkpoint_blocks: bool = False,
        out_features: tuple[str, ...] = tuple(STRIDES),
    ) -> None:
        """Args:
        name: of a model of timm, or with the tag of its weights ("resnet50.a1_in1k").
        in_channels: of the pictures.
        pretrained: start from the weights that timm downloads.
        drop_path_rate: stochastic depth of the last block.
        norm: batch norm: "" learns from each batch, "SyncBN" from those of all processes; "FrozenBN" keeps both
            statistics and scales as loaded.
        freeze: the timm model does not learn and behaves as in evaluation; a pyramid on top of it learns.
        checkpoint_blocks: recompute blocks in the backward pass.
        out_features: names of the maps to give.
        """
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"MODEL.TIMM.NORM={norm!r} is unknown; choose from: {', '.join(map(repr, _NORMS))}")
        if not out_features or not set(out_features) <= set(STRIDES):
            raise ValueError(f"MODEL.TIMM.OUT_FEATURES={list(out_features)} must name some of {', '.join(STRIDES)}")
        self._out_features = [feature for feature in STRIDES if feature in out_features]
        self._out_feature_strides = STRIDES
        strides = [STRIDES[feature] for feature in self._out_features]
        outline = describe_model(name)
        indices = _indices_of_strides(name, outline.strides, strides)
        channels, map_strides = ([values[index] for index in indices] for values in (outline.channels, outline.strides))
        self.model = create_model(
            name,
            accepted=outline.accepted,
            in_channels=in_channels,
            pretrained=pretrained,
            drop_path_rate=drop_path_rate,
        )
        self.indices: list[int] = self.model.prune_intermediate_layers(indices, prune_norm=True)
        self._check_maps(name, in_channels, channels, map_strides)
        self.pyramid: SimpleFeaturePyramid | None = None
        if map_strides != strides:  # a plain ViT
            self.pyramid = SimpleFeaturePyramid(in_channels=channels[0], in_stride=map_strides[0], out_strides=strides)
            channels = self.pyramid.out_channels
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self.frozen, self.norm = freeze, norm
        self._prepare_training(name, checkpoint_blocks)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.TIMM
        pretrained = node.PRETRAINED and not cfg.MODEL.WEIGHTS  # which would replace what was downloaded
        if pretrained:
            problem = check_colors(
                node.NAME, mean=cfg.MODEL.PIXEL_MEAN, std=cfg.MODEL.PIXEL_STD, channel_order=cfg.INPUT.FORMAT
            )
            if problem:
                logger.warning(f"MODEL.TIMM.PRETRAINED: {problem}")
        return {
            "name": node.NAME,
            "in_channels": input_shape.channels or 3,
            "pretrained": pretrained,
            "drop_path_rate": node.DROP_PATH_RATE,
            "norm": node.NORM,
            "freeze": node.FREEZE,
            "checkpoint_blocks": node.USE_CHECKPOINT,
            "out_features": tuple(node.OUT_FEATURES),
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalized pictures.

        Args:
            images: (B, 3, H, W) of any size. They are padded with zeros, at the right and the bottom, to multiples of
                32 pixels, and cells that lie wholly in this padding are cut off again.

        Returns:
            Name -> (B, C, h, w) with h = ceil(H / stride) and w = ceil(W / stride).
        """
        if images.dim() != 4:
            raise ValueError(f"TimmBackbone reads images (B, 3, H, W), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        maps = self._maps(F.pad(images, (0, -width % _DIVISIBILITY, 0, -height % _DIVISIBILITY)))
        if self.pyramid is not None:
            maps = self.pyramid(maps[0])
        outputs = {}
        for feature, x_BChw in zip(self._out_features, maps, strict=True):
            stride = STRIDES[feature]
            outputs[feature] = x_BChw[..., : -(-height // stride), : -(-width // stride)]
        return outputs

    def train(self, mode: bool = True) -> TimmBackbone:
        """Training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        elif self.norm == "FrozenBN":
            for module in _batch_norms(self.model):
                module.eval()
        return self

    @property
    def size_divisibility(self) -> int:
        return _DIVISIBILITY

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=self.indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def _check_maps(self, name: str, in_channels: int, channels: list[int], strides: list[int]) -> None:
        """Try a small picture, so that a model that serves one size only is refused before anything is trained.

        Raises:
            ValueError: the model refuses the picture, or its maps are not those that timm announces.
        """
        height, width = 2 * _DIVISIBILITY, 3 * _DIVISIBILITY
        device = next(self.model.parameters()).device
        self.model.eval()
        try:
            with torch.no_grad():
                maps = self._maps(torch.zeros(1, in_channels, height, width, device=device))
        except (AssertionError, RuntimeError, ValueError) as error:  # models differ in how they refuse
            raise ValueError(
                f"MODEL.TIMM.NAME={name!r} does not read pictures of all sizes that are multiples of {_DIVISIBILITY} "
                f"pixels ({str(error) or 'without a reason'}); choose another model"
            ) from error
        expected = [(count, height // stride, width // stride) for count, stride in zip(channels, strides, strict=True)]
        given = [tuple(x_1Chw.shape[1:]) for x_1Chw in maps]
        if given != expected:
            raise ValueError(
                f"MODEL.TIMM.NAME={name!r} makes maps (channels, height, width) {given} of a picture of {height} x "
                f"{width} pixels instead of {expected}; choose another model"
            )

    def _prepare_training(self, name: str, checkpoint_blocks: bool) -> None:
        """Apply what the config says about norms, freezing and recomputation."""
        if self.norm and not _batch_norms(self.model):
            logger.warning(f"MODEL.TIMM.NORM={self.norm!r} changes nothing: {name} has no batch norm")
        elif self.norm == "SyncBN":
            # torch's own conversion would lose timm's fused activations.
            self.model = import_timm().layers.convert_sync_batchnorm(self.model)
        elif self.norm == "FrozenBN":
            for module in _batch_norms(self.model):
                module.requires_grad_(False)
        if self.frozen:
            self.model.requires_grad_(False)
        if checkpoint_blocks:
            try:
                self.model.set_grad_checkpointing(True)
            except AssertionError as error:
                raise ValueError(
                    f"MODEL.TIMM.USE_CHECKPOINT is True, but {name} cannot recompute its blocks; set it to False"
                ) from error
        self.train(self.training)


def _indices_of_strides(name: str, reductions: list[int], strides: list[int]) -> list[int]:
    """Which intermediate maps to take: the last one of every stride, or the very last one of a plain ViT.

    Raises:
        ValueError: the model has several resolutions, but not those wanted, or one from which they cannot be made.
    """
    if set(strides) <= set(reductions):
        return [max(index for index, reduction in enumerate(reductions) if reduction == stride) for stride in strides]
    if len(set(reductions)) == 1 and reductions[0] in STRIDES.values():
        return [len(reductions) - 1]
    raise ValueError(
        f"MODEL.TIMM.NAME={name!r} has maps of the strides {sorted(set(reductions))} in pixels, but the model needs "
        f"{strides} (MODEL.TIMM.OUT_FEATURES) or, in a plain ViT, patches of {list(STRIDES.values())} pixels"
    )


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
