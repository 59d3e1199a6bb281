"""Attention, feed-forward and MLP blocks shared by the transformer decoders (Mask2Former, arXiv:2112.01527, Sec. 3.2).

Parameter names are those of published checkpoints; every layer is residual and normalizes after (or, with `pre_norm`,
before) its block.
"""
# B clips, T frames (1 for images), N = B*T frames with the frame index fastest, Q queries, S keys, C channels, h heads,
# d = C / h, F inner width of the feed-forward network.

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..inference_layers import inference_feed_forward, inference_linear

__all__ = [
    "MLP",
    "CrossAttentionLayer",
    "FeedForwardLayer",
    "MultiheadAttention",
    "SelfAttentionLayer",
    "attention_by_products",
    "clip_tokens",
]

SCORES_AT_ONCE = 2**26  # float32, and as many again for their softmax


def clip_tokens(maps_NChw: Tensor, num_frames: int) -> Tensor:
    """The cells of all T maps of a clip as one sequence: (B*T, C, h, w) -> (B, T*h*w, C), frame index slowest."""
    return maps_NChw.flatten(2).unflatten(0, (-1, num_frames)).transpose(2, 3).flatten(1, 2)


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with the parameters of `torch.nn.MultiheadAttention`, batch first.

    Weights are not materialized (fused kernels), but where that is faster, and one boolean mask serves all heads. While
    training, each weight is dropped with probability `dropout`.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"attention width {embed_dim} (MODEL.MASK_FORMER.HIDDEN_DIM) must be divisible by the number of heads "
                f"{num_heads} (MODEL.MASK_FORMER.NHEADS)"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query_BQC: Tensor, key_BSC: Tensor, value_BSC: Tensor, attend_BQS: Tensor | None = None
    ) -> Tensor:
        """Attend from queries to keys; `attend_BQS` is True where a query may look (None: everywhere). -> (B, Q, C)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query_BhQd, key_BhSd, value_BhSd = (
            inference_linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query_BQC, key_BSC, value_BSC), weights, biases, strict=True)
        )
        mask_B1QS = None if attend_BQS is None else attend_BQS.unsqueeze(1)
        dropout = self.dropout if self.training else 0.0
        if mask_B1QS is not None and _is_faster_by_products(query_BhQd, key_BhSd, dropout):
            out_BhQd = attention_by_products(query_BhQd, key_BhSd, value_BhSd, mask_B1QS)
        else:
            out_BhQd = F.scaled_dot_product_attention(
                query_BhQd, key_BhSd, value_BhSd, attn_mask=mask_B1QS, dropout_p=dropout
            )
        return self.out_proj(out_BhQd.transpose(1, 2).flatten(2))


def _is_faster_by_products(query_BhQd: Tensor, key_BhSd: Tensor, dropout: float) -> bool:
    """PyTorch's fused kernel for masks in float32 gives each block of queries and head to one multiprocessor: a hundred
    queries leave most of a GPU idle while a few go through all pixels.
    """
    is_alone = dropout == 0 and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not (is_alone and query_BhQd.is_cuda and query_BhQd.dtype == torch.float32):
        return False
    num_heads, num_queries = query_BhQd.shape[1:3]
    return num_heads * num_queries * key_BhSd.shape[2] <= SCORES_AT_ONCE


def attention_by_products(query_BhQd: Tensor, key_BhSd: Tensor, value_BhSd: Tensor, attend_B1QS: Tensor) -> Tensor:
    """Masked attention with scores that are written out, of as many clips at once as `SCORES_AT_ONCE` allows.

    Every query must attend to something.
    """
    num_heads, num_queries, width = query_BhQd.shape[1:]
    clips_at_once = max(1, SCORES_AT_ONCE // (num_heads * num_queries * key_BhSd.shape[2]))
    outs = []
    for query, key, value, attend in zip(
        *(tensor.split(clips_at_once) for tensor in (query_BhQd * width**-0.5, key_BhSd, value_BhSd, attend_B1QS)),
        strict=True,
    ):
        scores_bhQS = (query @ key.transpose(2, 3)).masked_fill_(~attend, -math.inf)
        outs.append(scores_bhQS.softmax(dim=-1) @ value)
    return outs[0] if len(outs) == 1 else torch.cat(outs)


class CrossAttentionLayer(nn.Module):
    """Queries read the pixels of one level; with `attend_BQS`, only inside their own masks (Sec. 3.2.1)."""

    def __init__(self, *, embed_dim: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(embed_dim=embed_dim, num_heads=num_heads)
        self.norm = nn.LayerNorm(embed_dim)
        self.pre_norm = pre_norm

    def forward(
        self, query_BQC: Tensor, query_position: Tensor, key_BSC: Tensor, value_BSC: Tensor, attend_BQS: Tensor | None
    ) -> Tensor:
        """Args: content and position of the queries, keys with positions added, values, boolean mask. -> (B, Q, C)."""
        content_BQC = self.norm(query_BQC) if self.pre_norm else query_BQC
        read_BQC = self.multihead_attn(content_BQC + query_position, key_BSC, value_BSC, attend_BQS)
        return query_BQC + read_BQC if self.pre_norm else self.norm(query_BQC + read_BQC)


class SelfAttentionLayer(nn.Module):
    """Queries read one another (after cross-attention: Sec. 3.2.3)."""

    def __init__(self, *, embed_dim: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim=embed_dim, num_heads=num_heads)
        self.norm = nn.LayerNorm(embed_dim)
        self.pre_norm = pre_norm

    def forward(self, query_BQC: Tensor, query_position: Tensor) -> Tensor:
        """Args: content and position of the queries. -> (B, Q, C)."""
        content_BQC = self.norm(query_BQC) if self.pre_norm else query_BQC
        located_BQC = content_BQC + query_position
        read_BQC = self.self_attn(located_BQC, located_BQC, content_BQC)
        return query_BQC + read_BQC if self.pre_norm else self.norm(query_BQC + read_BQC)


class FeedForwardLayer(nn.Module):
    """Two linear maps with ReLU between, applied to every query alone."""

    def __init__(self, *, embed_dim: int, inner_dim: int, pre_norm: bool) -> None:
        super().__init__()
        self.linear1 = nn.Linear(embed_dim, inner_dim)
        self.linear2 = nn.Linear(inner_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.pre_norm = pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, query_BQC: Tensor) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        content_BQC = self.norm(query_BQC) if self.pre_norm else query_BQC
        update_BQC = inference_feed_forward(content_BQC, self.linear1, self.linear2)
        return query_BQC + update_BQC if self.pre_norm else self.norm(query_BQC + update_BQC)


class MLP(nn.Module):
    """Linear layers with ReLU between them; turns a query into its mask embedding."""

    def __init__(self, *, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
