"""Pixel decoder with a multi-scale deformable attention encoder (Mask2Former, arXiv:2112.01527, Sec. 4.1;
Deformable DETR, arXiv:2010.04159, Sec. 4.1).

The encoder lets the coarse maps exchange information across resolutions; a feature pyramid then carries the result to
the finest map, from which per-pixel embeddings are made.
"""
# N frames, C backbone channels, D width of the encoder, E width of the per-pixel embeddings,
# L encoder levels from coarse to fine, (h, w) cells of one level, S = sum of h * w over the levels.

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...registry import PIXEL_DECODER_REGISTRY
from ..constants import cached_constant
from ..inference_layers import InferenceLinear, inference_feed_forward
from ..transformer_decoder.position_encoding import sine_position_encoding_2d
from .fpn import NUM_GROUPS, NUM_MULTI_SCALE_MAPS, check_width, pyramid_conv
from .ops import MSDeformAttn
from .precision import in_configured_precision

__all__ = ["MSDeformAttnPixelDecoder"]

FEEDFORWARD_DIM = 1024  # published models have it whatever MODEL.MASK_FORMER.DIM_FEEDFORWARD says
NUM_POINTS = 4  # points read per level and head


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over the tokens of all levels and a feed-forward network, each normalized after."""

    def __init__(
        self, *, embed_dim: int, feedforward_dim: int, dropout: float, num_levels: int, num_heads: int, num_points: int
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(embed_dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = InferenceLinear(embed_dim, feedforward_dim)
        self.linear2 = InferenceLinear(feedforward_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, tokens_NSD: Tensor, position_SD: Tensor, reference_points: Tensor, sizes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        """Args: content, positions (added to queries only), reference points (1, S, L, 2), sizes. -> (N, S, D)."""
        # Added in float32; under autocast both linear maps that read the sum would else round it for themselves.
        query_NSD = (tokens_NSD + position_SD).to(tokens_NSD.dtype)
        read_NSD = self.self_attn(query_NSD, reference_points, tokens_NSD, sizes)
        tokens_NSD = self.norm1(tokens_NSD + self.dropout(read_NSD))
        update_NSD = inference_feed_forward(tokens_NSD, self.linear1, self.linear2, self.dropout)
        return self.norm2(tokens_NSD + self.dropout(update_NSD))


class DeformableEncoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, layers: list[DeformableEncoderLayer], *, checkpoint_layers: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpoint_layers = checkpoint_layers

    def forward(self, tokens_NSD: Tensor, position_SD: Tensor, sizes: tuple[tuple[int, int], ...]) -> Tensor:
        """(N, S, D) -> (N, S, D)."""
        dtype = torch.promote_types(tokens_NSD.dtype, torch.float32)  # places of half precision would miss their cells
        reference_1SL2 = cell_centers(sizes, dtype, tokens_NSD.device)[None, :, None].expand(-1, -1, len(sizes), -1)
        for layer in self.layers:
            if self.checkpoint_layers and self.training:
                tokens_NSD = checkpoint(layer, tokens_NSD, position_SD, reference_1SL2, sizes, use_reentrant=False)
            else:
                tokens_NSD = layer(tokens_NSD, position_SD, reference_1SL2, sizes)
        return tokens_NSD


class DeformableTransformer(nn.Module):
    """The encoder on maps: flattens them, tells it where every token lies, and restores the maps."""

    def __init__(self, *, num_levels: int, embed_dim: int, encoder: DeformableEncoder) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        self.encoder = encoder
        nn.init.normal_(self.level_embed)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """L maps (N, D, h, w), coarse to fine -> as many of the same sizes."""
        sizes = tuple((level.shape[2], level.shape[3]) for level in maps)
        num_tokens = [height * width for height, width in sizes]
        encoding_SD = flat_position_encoding(sizes, self.level_embed.shape[1], maps[0].device)
        level_SD = torch.cat(
            [embedding.expand(count, -1) for embedding, count in zip(self.level_embed, num_tokens, strict=True)]
        )
        tokens_NSD = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        tokens_NSD = self.encoder(tokens_NSD, encoding_SD + level_SD, sizes)
        levels = tokens_NSD.split(num_tokens, dim=1)
        return [level.unflatten(1, size).permute(0, 3, 1, 2) for level, size in zip(levels, sizes, strict=True)]


@PIXEL_DECODER_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Deformable encoder on the coarse backbone maps, then a feature pyramid up to the finest one."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_in_features: list[str],
        conv_dim: int,
        mask_dim: int,
        norm: str,
        num_layers: int,
        num_heads: int,
        dropout: float,
        common_stride: int = 4,
        checkpoint_layers: bool = False,
        force_fp32: bool = False,
    ) -> None:
        """Args:
        input_shape: backbone maps that are read.
        transformer_in_features: those that the encoder reads.
        conv_dim: D.
        mask_dim: E.
        norm: Detectron2's name of the norm in the feature pyramid; "" means biases instead.
        common_stride: stride of the finest map.
        checkpoint_layers: recompute encoder layers in the backward pass.
        force_fp32: compute in the dtype of the parameters also under autocast, as published models do.
        """
        super().__init__()
        check_width(conv_dim, NUM_GROUPS, "the groups of its norms")
        check_width(conv_dim, num_heads, "MODEL.MASK_FORMER.NHEADS")
        names = sorted(input_shape, key=lambda name: input_shape[name].stride)
        # Level 0 is the coarsest: checkpoints number the projections so.
        self.encoder_features = [name for name in reversed(names) if name in transformer_in_features]
        self.force_fp32 = force_fp32
        if not self.encoder_features:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES={transformer_in_features} names none "
                f"of the maps that the head reads: {', '.join(names)}"
            )
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(input_shape[name].channels, conv_dim, kernel_size=1), nn.GroupNorm(NUM_GROUPS, conv_dim)
            )
            for name in self.encoder_features
        )
        num_levels = len(self.encoder_features)
        layers = [
            DeformableEncoderLayer(
                embed_dim=conv_dim,
                feedforward_dim=FEEDFORWARD_DIM,
                dropout=dropout,
                num_levels=num_levels,
                num_heads=num_heads,
                num_points=NUM_POINTS,
            )
            for _ in range(num_layers)
        ]
        encoder = DeformableEncoder(layers, checkpoint_layers=checkpoint_layers)
        self.transformer = DeformableTransformer(num_levels=num_levels, embed_dim=conv_dim, encoder=encoder)
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, kernel_size=1)

        finest_stride = min(input_shape[name].stride for name in self.encoder_features)
        num_pyramid_levels = int(math.log2(finest_stride) - math.log2(common_stride))
        self.pyramid_features = names[:num_pyramid_levels][::-1]  # coarse to fine, numbered from the finest
        for number, name in enumerate(names[:num_pyramid_levels], start=1):
            channels = input_shape[name].channels
            layer = pyramid_conv(conv_dim, conv_dim, kernel_size=3, norm=norm, activation=F.relu)
            self.add_module(f"adapter_{number}", pyramid_conv(channels, conv_dim, kernel_size=1, norm=norm))
            self.add_module(f"layer_{number}", layer)
        self._reset_parameters()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        mask_former = cfg.MODEL.MASK_FORMER
        _check_unread_keys(
            head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            mask_former.NHEADS,
        )
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "transformer_in_features": list(head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES),
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "num_layers": head.TRANSFORMER_ENC_LAYERS,
            "num_heads": mask_former.NHEADS,
            "dropout": mask_former.DROPOUT,
            "common_stride": head.COMMON_STRIDE,
            "checkpoint_layers": mask_former.CHECKPOINT_TRANSFORMER,
            "force_fp32": head.FORCE_FP32,
        }

    @in_configured_precision
    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Decode.

        Args:
            features: backbone maps, name -> (N, C, h, w).

        Returns:
            Per-pixel embeddings (N, E, h, w) at the finest stride, the coarsest encoder map (N, D, h, w), and three
            maps (N, D, h, w) from coarse to fine. Under autocast, unless `force_fp32`, in the dtype that it gives;
            positions, locations, softmax and the statistics of norms stay float32.
        """
        inputs = [features[name] for name in self.encoder_features]
        maps = self.transformer([project(x) for project, x in zip(self.input_proj, inputs, strict=True)])
        encoder_map = maps[0]
        for number, name in zip(range(len(self.pyramid_features), 0, -1), self.pyramid_features, strict=True):
            lateral = self.get_submodule(f"adapter_{number}")(features[name])
            coarse = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            maps.append(self.get_submodule(f"layer_{number}")(lateral + coarse))
        return self.mask_features(maps[-1]), encoder_map, maps[:NUM_MULTI_SCALE_MAPS]

    def _reset_parameters(self) -> None:
        for module in self.input_proj.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                weight_init.c2_xavier_fill(module)


@cached_constant(max_entries=8)
def flat_position_encoding(sizes: tuple[tuple[int, int], ...], num_channels: int, device: torch.device) -> Tensor:
    """Sine encodings of all levels one after the other, (S, D) float32. Shared: do not write into it."""
    return torch.cat(
        [sine_position_encoding_2d(height, width, num_channels // 2, device).flatten(0, 1) for height, width in sizes]
    )


@cached_constant(max_entries=8)
def cell_centers(sizes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(x, y) of every token in [0, 1], (S, 2). Shared: do not write into it."""
    centers = []
    for height, width in sizes:
        y_h = (torch.arange(height, dtype=dtype, device=device) + 0.5) / height
        x_w = (torch.arange(width, dtype=dtype, device=device) + 0.5) / width
        y_hw, x_hw = y_h[:, None].expand(-1, width), x_w.expand(height, -1)
        centers.append(torch.stack([x_hw, y_hw], dim=-1).flatten(0, 1))
    return torch.cat(centers)


def _check_unread_keys(num_points: int, num_heads: int, num_heads_read: int) -> None:
    if num_points != NUM_POINTS:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS={num_points} is not supported: published "
            f"models have {NUM_POINTS} points whatever this key says"
        )
    if num_heads not in (8, num_heads_read):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS={num_heads} has no effect: the number of heads "
            f"is MODEL.MASK_FORMER.NHEADS={num_heads_read}"
        )
