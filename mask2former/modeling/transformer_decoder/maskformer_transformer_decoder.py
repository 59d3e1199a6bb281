"""Transformer decoder of MaskFormer (arXiv:2107.06278, Sec. 3.3): queries read one whole map, as in DETR."""
# L prediction layers, B clips, T frames (1 for images), Q queries, K classes, C hidden width, E width of the per-pixel
# embeddings, (h, w) cells of the map, S = T*h*w, (H4, W4) cells at stride 4.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode, configurable
from fvcore.nn import weight_init
from torch import Tensor, nn

from ...registry import TRANSFORMER_DECODER_REGISTRY
from ..masks import MaskLogits, Predictions
from .layers import MLP, clip_tokens
from .position_encoding import SinePositionEncoding2D
from .transformer import Transformer, TransformerDecoder, TransformerEncoder

__all__ = ["StandardTransformerDecoder"]


@TRANSFORMER_DECODER_REGISTRY.register()
class StandardTransformerDecoder(nn.Module):
    """Learned queries refined by self-attention, cross-attention to one map, and feed-forward layers."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        mask_classification: bool,
        hidden_dim: int,
        num_queries: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        num_encoder_layers: int,
        num_decoder_layers: int,
        pre_norm: bool,
        deep_supervision: bool,
        mask_dim: int,
        enforce_input_projection: bool,
        position_encoding: Callable[..., Tensor],
        checkpoint_layers: bool = False,
    ) -> None:
        """Args:
        in_channels: channels of the map.
        num_classes: K, without "no object".
        mask_classification: False leaves out the classes: query k is then that of class k.
        dropout: probability, while training, for attention weights, inside the feed-forward networks and on what each
            block adds.
        num_encoder_layers: layers in which the cells of the map read one another first.
        num_decoder_layers: L.
        deep_supervision: whether earlier layers predict, too.
        mask_dim: E.
        position_encoding: `(num_frames, height, width, device) -> (T*h*w, hidden_dim)`.
        checkpoint_layers: recompute each layer in the backward pass.
        """
        super().__init__()
        self.position_encoding = position_encoding
        self.deep_supervision = deep_supervision
        layer_options: dict[str, Any] = {
            "embed_dim": hidden_dim,
            "num_heads": num_heads,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
            "pre_norm": pre_norm,
            "checkpoint_layers": checkpoint_layers,
        }
        self.transformer = Transformer(
            encoder=TransformerEncoder(num_layers=num_encoder_layers, **layer_options),
            decoder=TransformerDecoder(num_layers=num_decoder_layers, **layer_options),
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)  # learned position
        self.input_proj: nn.Module = nn.Identity()
        if in_channels != hidden_dim or enforce_input_projection:
            self.input_proj = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
            weight_init.c2_xavier_fill(self.input_proj)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1) if mask_classification else None
        self.mask_embed = MLP(input_dim=hidden_dim, hidden_dim=hidden_dim, output_dim=mask_dim, num_layers=3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        if mask_former.TRANSFORMER_IN_FEATURE == "multi_scale_pixel_decoder":
            raise ValueError(
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE='multi_scale_pixel_decoder' means three maps, but "
                "StandardTransformerDecoder reads one: set TRANSFORMER_IN_FEATURE to transformer_encoder, "
                "pixel_embedding or a backbone map such as res5, or set "
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME MultiScaleMaskedTransformerDecoder"
            )
        for key, least in (("ENC_LAYERS", 0), ("DEC_LAYERS", 1)):
            if mask_former[key] < least:
                raise ValueError(f"MODEL.MASK_FORMER.{key}={mask_former[key]} must be at least {least}")
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "mask_classification": mask_classification,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "num_heads": mask_former.NHEADS,
            "feedforward_dim": mask_former.DIM_FEEDFORWARD,
            "dropout": mask_former.DROPOUT,
            "num_encoder_layers": mask_former.ENC_LAYERS,
            "num_decoder_layers": mask_former.DEC_LAYERS,
            "pre_norm": mask_former.PRE_NORM,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_projection": mask_former.ENFORCE_INPUT_PROJ,
            "position_encoding": SinePositionEncoding2D(mask_former.HIDDEN_DIM),
            "checkpoint_layers": mask_former.CHECKPOINT_TRANSFORMER,
        }

    def forward(
        self, features: Tensor, mask_features: Tensor, *, num_frames: int = 1, all_layers: bool = False
    ) -> Predictions:
        """Predict Q masks and their classes.

        Args:
            features: one map per frame, (B*T, in_channels, h, w), frame index fastest. The frames of a clip are read
                together, and their encoding does not tell them apart.
            mask_features: per-pixel embeddings (B*T, E, H4, W4).
            num_frames: T.
            all_layers: return every layer's prediction, if there is deep supervision, instead of only the last.

        Returns:
            Class logits (L, B, Q, K + 1), or (L, B, Q, 0) without mask classification, and mask logits as factors
            (L, B, Q, E) x (B, T, E, H4, W4). L is 1 when only the last prediction is wanted.
        """
        height, width = features.shape[-2:]
        queries_LBQC = self.transformer(
            clip_tokens(self.input_proj(features), num_frames),
            self.position_encoding(num_frames, height, width, features.device),
            self.query_embed.weight,
            all_layers=all_layers and self.deep_supervision,
        )
        if self.class_embed is None:
            class_logits = queries_LBQC.new_empty(*queries_LBQC.shape[:-1], 0)
        else:
            class_logits = self.class_embed(queries_LBQC)
        mask_features_BTEHW = mask_features.unflatten(0, (-1, num_frames))
        return Predictions(class_logits, MaskLogits(self.mask_embed(queries_LBQC), mask_features_BTEHW))
