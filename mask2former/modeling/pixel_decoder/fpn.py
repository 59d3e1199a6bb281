"""Feature pyramids as pixel decoders (MaskFormer, arXiv:2107.06278, Sec. 3.3), plain or with a transformer encoder on
the coarsest map (as in its panoptic models, Sec. 4).

A pyramid (FPN, arXiv:1612.03144) carries the coarsest map up to the finest one, adding each backbone map on the way.
"""
# N frames, D width of the pyramid, E width of the per-pixel embeddings, (h, w) cells of one level, S = h*w.

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from ...registry import PIXEL_DECODER_REGISTRY
from ..transformer_decoder.layers import clip_tokens
from ..transformer_decoder.position_encoding import SinePositionEncoding2D
from ..transformer_decoder.transformer import TransformerEncoder
from .precision import in_configured_precision

__all__ = ["BasePixelDecoder", "TransformerEncoderPixelDecoder", "check_width", "pyramid_conv"]

NUM_GROUPS = 32  # of the norm "GN"
NUM_MULTI_SCALE_MAPS = 3  # maps that the masked transformer decoder reads


def pyramid_conv(in_channels: int, out_channels: int, *, kernel_size: int, norm: str, activation: Any = None) -> Conv2d:
    """A convolution that keeps the size, then Detectron2's norm of that name ("" means a bias instead), activation."""
    try:
        norm_layer = get_norm(norm, out_channels)
    except KeyError as error:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NORM={norm!r} is unknown to Detectron2; choose for example 'GN', 'SyncBN' or '' (none)"
        ) from error
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=norm_layer,
        activation=activation,
    )


def check_width(width: int, divisor: int, reason: str) -> None:
    """Raise ValueError, with the reason, unless the pixel decoder's width can be divided."""
    if width % divisor:
        raise ValueError(f"MODEL.SEM_SEG_HEAD.CONVS_DIM={width} must be divisible by {divisor}, {reason}")


def _fine_to_coarse(input_shape: dict[str, ShapeSpec]) -> list[str]:
    """Names of the maps; those of one stride (a dilated last stage) stay in the order of the backbone."""
    return sorted(input_shape, key=lambda name: input_shape[name].stride)


@PIXEL_DECODER_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """A feature pyramid over all backbone maps."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        force_fp32: bool = False,
    ) -> None:
        """Args:
        input_shape: backbone maps that are read.
        conv_dim: D.
        mask_dim: E.
        norm: Detectron2's name of the norm after the convolutions; "" means biases instead.
        force_fp32: compute in the dtype of the parameters also under autocast.
        """
        super().__init__()
        if norm == "GN":
            check_width(conv_dim, NUM_GROUPS, "the groups of its norms (MODEL.SEM_SEG_HEAD.NORM)")
        names = _fine_to_coarse(input_shape)
        self.force_fp32 = force_fp32
        self.in_features = names[::-1]  # coarse to fine; checkpoints number the convolutions from the finest
        for number, name in enumerate(names, start=1):
            channels = input_shape[name].channels
            if number < len(names):
                self.add_module(f"adapter_{number}", pyramid_conv(channels, conv_dim, kernel_size=1, norm=norm))
                channels = conv_dim
            layer = pyramid_conv(channels, conv_dim, kernel_size=3, norm=norm, activation=F.relu)
            self.add_module(f"layer_{number}", layer)
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        for module in self.children():
            weight_init.c2_xavier_fill(module)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "force_fp32": head.FORCE_FP32,
        }

    @in_configured_precision
    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Decode.

        Args:
            features: backbone maps, name -> (N, C, h, w).

        Returns:
            Per-pixel embeddings (N, E, h, w) at the finest stride, the map (N, D, h, w) that an encoder made, if there
            is one, and the first three maps (N, D, h, w) of the pyramid from coarse to fine.
        """
        encoder_map, coarsest_map = self._read_coarsest(features[self.in_features[0]])
        coarsest_number = len(self.in_features)
        maps = [self.get_submodule(f"layer_{coarsest_number}")(coarsest_map)]
        for number, name in zip(range(coarsest_number - 1, 0, -1), self.in_features[1:], strict=True):
            lateral = self.get_submodule(f"adapter_{number}")(features[name])
            coarse = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="nearest")
            maps.append(self.get_submodule(f"layer_{number}")(lateral + coarse))
        return self.mask_features(maps[-1]), encoder_map, maps[:NUM_MULTI_SCALE_MAPS]

    def _read_coarsest(self, feature: Tensor) -> tuple[Tensor | None, Tensor]:
        """What an encoder makes of the coarsest map, and the map at the foot of the pyramid."""
        return None, feature


@PIXEL_DECODER_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """A feature pyramid whose coarsest map has passed a transformer encoder."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        pre_norm: bool,
        checkpoint_layers: bool = False,
        force_fp32: bool = False,
    ) -> None:
        """Args:
        input_shape, conv_dim, mask_dim, norm, force_fp32: see `BasePixelDecoder`.
        dropout: see `StandardTransformerDecoder`.
        checkpoint_layers: recompute encoder layers in the backward pass.
        """
        check_width(conv_dim, num_heads, "MODEL.MASK_FORMER.NHEADS")
        coarsest = _fine_to_coarse(input_shape)[-1]
        channels, stride = input_shape[coarsest].channels, input_shape[coarsest].stride
        # The pyramid stands on the encoder, which hands over D channels.
        pyramid_shape = {**input_shape, coarsest: ShapeSpec(channels=conv_dim, stride=stride)}
        super().__init__(pyramid_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm, force_fp32=force_fp32)
        self.input_proj = Conv2d(channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        encoder = TransformerEncoder(
            num_layers=num_layers,
            embed_dim=conv_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            pre_norm=pre_norm,
            checkpoint_layers=checkpoint_layers,
        )
        self.transformer = MapEncoder(encoder, SinePositionEncoding2D(conv_dim))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            **super().from_config(cfg, input_shape),
            "num_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "num_heads": mask_former.NHEADS,
            "feedforward_dim": mask_former.DIM_FEEDFORWARD,
            "dropout": mask_former.DROPOUT,
            "pre_norm": mask_former.PRE_NORM,
            "checkpoint_layers": mask_former.CHECKPOINT_TRANSFORMER,
        }

    def _read_coarsest(self, feature: Tensor) -> tuple[Tensor | None, Tensor]:
        encoder_map = self.transformer(self.input_proj(feature))
        return encoder_map, encoder_map


class MapEncoder(nn.Module):
    """The encoder on maps: flattens each, tells it where every cell lies, and restores the map."""

    def __init__(self, encoder: TransformerEncoder, position_encoding: SinePositionEncoding2D) -> None:
        super().__init__()
        self.encoder = encoder
        self.position_encoding = position_encoding

    def forward(self, map_NDhw: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, D, h, w)."""
        height, width = map_NDhw.shape[-2:]
        position_SD = self.position_encoding(1, height, width, map_NDhw.device)
        encoded_NSD = self.encoder(clip_tokens(map_NDhw, num_frames=1), position_SD)
        return encoded_NSD.transpose(1, 2).unflatten(2, (height, width))
