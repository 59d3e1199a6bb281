"""Masked-attention transformer decoder (Mask2Former, arXiv:2112.01527, Sec. 3.2).

Each layer lets every query read only the pixels of the mask it predicted one layer earlier, at one of three resolutions
in turn, from coarse to fine.
"""
# L prediction layers, B clips, T frames (1 for images), Q queries, K classes, C hidden width, E width of the per-pixel
# embeddings, (h, w) cells of one level, S = T*h*w keys, (H4, W4) cells at stride 4.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...registry import TRANSFORMER_DECODER_REGISTRY
from ..masks import MaskLogits, Predictions, resize_features
from .layers import MLP, CrossAttentionLayer, FeedForwardLayer, SelfAttentionLayer, clip_tokens
from .position_encoding import SinePositionEncoding2D, SinePositionEncoding3D

__all__ = ["MultiScaleMaskedTransformerDecoder", "VideoMultiScaleMaskedTransformerDecoder", "attended_positions"]

NUM_FEATURE_LEVELS = 3  # strides 32, 16 and 8, used in round-robin (Sec. 3.2.2)


class _Level(NamedTuple):
    """One resolution as the decoder reads it: keys with positions, values, and what masks are made of at that size."""

    key_BSC: Tensor
    value_BSC: Tensor
    mask_features: Tensor  # (B, T, E, h, w), without gradient


@torch.no_grad()
def attended_positions(masks: MaskLogits) -> Tensor:
    """Where each query may look: inside the mask it predicted one layer earlier (Sec. 3.2.1).

    Args:
        masks: the predicted masks at the size of the level attended next.

    Returns:
        (B, Q, S) bool, True = may look. A query whose mask is empty there may look everywhere.
    """
    # The published rule rounds: sigmoid, then compare. "logit >= 0" would differ for logits just below zero.
    inside_BQS = masks.dense().sigmoid().flatten(2) >= 0.5
    return inside_BQS | ~inside_BQS.any(dim=-1, keepdim=True)


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Learned queries refined by masked cross-attention, self-attention and feed-forward layers."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        num_heads: int,
        feedforward_dim: int,
        num_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_projection: bool,
        position_encoding: Callable[..., Tensor],
        checkpoint_layers: bool = False,
    ) -> None:
        """Args:
        in_channels: channels of the three feature maps.
        num_classes: K, without "no object".
        num_layers: decoder layers; there is one prediction more, made from the untouched queries.
        mask_dim: E.
        position_encoding: `(num_frames, height, width, device) -> (T*h*w, hidden_dim)`.
        checkpoint_layers: recompute each layer in the backward pass.
        """
        super().__init__()
        self.position_encoding = position_encoding
        self.checkpoint_layers = checkpoint_layers

        layer_options: dict[str, Any] = {"embed_dim": hidden_dim, "pre_norm": pre_norm}
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(num_heads=num_heads, **layer_options) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(num_heads=num_heads, **layer_options) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(inner_dim=feedforward_dim, **layer_options) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)

        self.query_feat = nn.Embedding(num_queries, hidden_dim)  # learned content
        self.query_embed = nn.Embedding(num_queries, hidden_dim)  # learned position
        self.level_embed = nn.Embedding(NUM_FEATURE_LEVELS, hidden_dim)
        project = in_channels != hidden_dim or enforce_input_projection
        self.input_proj = nn.ModuleList(
            nn.Conv2d(in_channels, hidden_dim, kernel_size=1) if project else nn.Identity()
            for _ in range(NUM_FEATURE_LEVELS)
        )
        for projection in self.input_proj:
            if isinstance(projection, nn.Conv2d):
                weight_init.c2_xavier_fill(projection)

        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(input_dim=hidden_dim, hidden_dim=hidden_dim, output_dim=mask_dim, num_layers=3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool) -> dict[str, Any]:
        if not mask_classification:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME={cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME!r} always "
                f"classifies masks and cannot serve the per-pixel head {cfg.MODEL.SEM_SEG_HEAD.NAME!r} "
                "(MODEL.SEM_SEG_HEAD.NAME); set StandardTransformerDecoder"
            )
        mask_former = cfg.MODEL.MASK_FORMER
        if mask_former.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE={mask_former.TRANSFORMER_IN_FEATURE!r} is a single map, but "
                f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME={mask_former.TRANSFORMER_DECODER_NAME!r} reads three: for "
                "MaskFormer, whose own files do not name the decoder, set "
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME StandardTransformerDecoder; for Mask2Former set "
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE multi_scale_pixel_decoder"
            )
        if mask_former.DEC_LAYERS < 1:
            raise ValueError(f"MODEL.MASK_FORMER.DEC_LAYERS={mask_former.DEC_LAYERS} must be at least 1")
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "num_heads": mask_former.NHEADS,
            "feedforward_dim": mask_former.DIM_FEEDFORWARD,
            "num_layers": mask_former.DEC_LAYERS - 1,  # the prediction before the first layer counts as one
            "pre_norm": mask_former.PRE_NORM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_projection": mask_former.ENFORCE_INPUT_PROJ,
            "position_encoding": SinePositionEncoding2D(mask_former.HIDDEN_DIM),
            "checkpoint_layers": mask_former.CHECKPOINT_TRANSFORMER,
        }

    def forward(
        self, features: Sequence[Tensor], mask_features: Tensor, *, num_frames: int = 1, all_layers: bool = False
    ) -> Predictions:
        """Predict Q masks and their classes.

        Args:
            features: three maps (B*T, in_channels, h, w), coarse to fine; frame index fastest.
            mask_features: per-pixel embeddings (B*T, E, H4, W4).
            num_frames: T.
            all_layers: return every layer's prediction (for deep supervision) instead of only the last.

        Returns:
            Class logits (L, B, Q, K + 1) and mask logits as factors (L, B, Q, E) x (B, T, E, H4, W4), with
            L = decoder layers + 1, or 1 when only the last prediction is wanted.
        """
        if len(features) != NUM_FEATURE_LEVELS:
            raise ValueError(
                f"the masked decoder reads {NUM_FEATURE_LEVELS} feature maps, got {len(features)}: the pixel decoder "
                "needs as many inputs (MODEL.SEM_SEG_HEAD.IN_FEATURES)"
            )
        mask_features_BTEHW = mask_features.unflatten(0, (-1, num_frames))
        levels = [self._read_level(i, feature, mask_features_BTEHW) for i, feature in enumerate(features)]

        num_clips = mask_features_BTEHW.shape[0]
        query_BQC = self.query_feat.weight.expand(num_clips, -1, -1)
        normalized = [self.decoder_norm(query_BQC)]
        embeddings = [self.mask_embed(normalized[0])]
        for i in range(len(self.transformer_ffn_layers)):
            level = levels[i % NUM_FEATURE_LEVELS]
            attend_BQS = attended_positions(MaskLogits(embeddings[-1].detach(), level.mask_features))
            query_BQC = self._layer(i, query_BQC, level, attend_BQS)
            normalized.append(self.decoder_norm(query_BQC))
            embeddings.append(self.mask_embed(normalized[-1]))

        first = 0 if all_layers else -1
        class_logits_LBQK = self.class_embed(torch.stack(normalized[first:]))
        return Predictions(class_logits_LBQK, MaskLogits(torch.stack(embeddings[first:]), mask_features_BTEHW))

    def _read_level(self, index: int, feature: Tensor, mask_features_BTEHW: Tensor) -> _Level:
        num_frames = mask_features_BTEHW.shape[1]
        height, width = feature.shape[-2:]
        value_BSC = clip_tokens(self.input_proj[index](feature), num_frames) + self.level_embed.weight[index]
        key_BSC = value_BSC + self.position_encoding(num_frames, height, width, feature.device)
        # Under autocast every layer would round them for itself.
        value_BSC, key_BSC = value_BSC.to(mask_features_BTEHW.dtype), key_BSC.to(mask_features_BTEHW.dtype)
        with torch.no_grad():
            level_mask_features = resize_features(mask_features_BTEHW, (height, width))
        return _Level(key_BSC, value_BSC, level_mask_features)

    def _layer(self, index: int, query_BQC: Tensor, level: _Level, attend_BQS: Tensor) -> Tensor:
        if self.checkpoint_layers and self.training:
            return checkpoint(self._run_layer, index, query_BQC, *level[:2], attend_BQS, use_reentrant=False)
        return self._run_layer(index, query_BQC, *level[:2], attend_BQS)

    def _run_layer(
        self, index: int, query_BQC: Tensor, key_BSC: Tensor, value_BSC: Tensor, attend_BQS: Tensor
    ) -> Tensor:
        position_QC = self.query_embed.weight
        cross_attention = self.transformer_cross_attention_layers[index]
        query_BQC = cross_attention(query_BQC, position_QC, key_BSC, value_BSC, attend_BQS)
        query_BQC = self.transformer_self_attention_layers[index](query_BQC, position_QC)
        return self.transformer_ffn_layers[index](query_BQC)


@TRANSFORMER_DECODER_REGISTRY.register()
def VideoMultiScaleMaskedTransformerDecoder(
    cfg: CfgNode, in_channels: int, mask_classification: bool
) -> MultiScaleMaskedTransformerDecoder:
    """The published name of the same decoder with positions that also tell the frames of a clip apart.

    From "Mask2Former for Video Instance Segmentation" (arXiv:2112.10764, Sec. 3): nothing else differs from images.
    """
    return MultiScaleMaskedTransformerDecoder(
        cfg,
        in_channels,
        mask_classification,
        position_encoding=SinePositionEncoding3D(cfg.MODEL.MASK_FORMER.HIDDEN_DIM),
    )
