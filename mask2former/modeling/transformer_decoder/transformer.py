"""Transformer of MaskFormer (arXiv:2107.06278, Sec. 3.3), which is that of DETR (arXiv:2005.12872, Sec. A.3).

Unlike in the masked decoder every query reads the whole map, before which queries read one another, and there is
dropout. Positions are added to the queries and keys of every attention, never to its values. The encoder alone also
serves `TransformerEncoderPixelDecoder`. Parameter names are those of published checkpoints.
"""
# B clips, S cells of a clip's map, Q queries, C channels, F inner width of the feed-forward networks, L decoder layers.

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..inference_layers import inference_feed_forward
from .layers import MultiheadAttention

__all__ = ["Transformer", "TransformerDecoder", "TransformerEncoder"]


class _Layer(nn.Module):
    """What layers of encoder and decoder share: a feed-forward network, dropout, and where the norms go."""

    def __init__(self, *, embed_dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def _residual(self, norm: nn.Module, tokens: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return tokens + self.dropout(block(norm(tokens)))
        return norm(tokens + self.dropout(block(tokens)))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        return inference_feed_forward(tokens, self.linear1, self.linear2, self.dropout)

    def _attend_to_itself(self, tokens: Tensor, position: Tensor) -> Tensor:
        located = tokens + position
        return self.self_attn(located, located, tokens)


class TransformerEncoderLayer(_Layer):
    """Self-attention over all cells and a feed-forward network."""

    def forward(self, tokens_BSC: Tensor, position_SC: Tensor) -> Tensor:
        """Args: content and positions. -> (B, S, C)."""
        tokens_BSC = self._residual(self.norm1, tokens_BSC, lambda x: self._attend_to_itself(x, position_SC))
        return self._residual(self.norm2, tokens_BSC, self._feed_forward)


class TransformerDecoderLayer(_Layer):
    """Self-attention among the queries, cross-attention to all cells, and a feed-forward network."""

    def __init__(self, *, embed_dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            pre_norm=pre_norm,
        )
        self.multihead_attn = MultiheadAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(self, query_BQC: Tensor, position_QC: Tensor, key_BSC: Tensor, value_BSC: Tensor) -> Tensor:
        """Args: content and positions of the queries, keys with positions added, values. -> (B, Q, C)."""
        query_BQC = self._residual(self.norm1, query_BQC, lambda x: self._attend_to_itself(x, position_QC))
        query_BQC = self._residual(
            self.norm2, query_BQC, lambda x: self.multihead_attn(x + position_QC, key_BSC, value_BSC)
        )
        return self._residual(self.norm3, query_BQC, self._feed_forward)


class _Stack(nn.Module):
    """Layers of one kind, and perhaps a norm after them."""

    layer_type: type[_Layer]
    always_ends_with_norm: bool  # instead of only with `pre_norm`

    def __init__(
        self,
        *,
        num_layers: int,
        embed_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        pre_norm: bool,
        checkpoint_layers: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            self.layer_type(
                embed_dim=embed_dim,
                num_heads=num_heads,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
                pre_norm=pre_norm,
            )
            for _ in range(num_layers)
        )
        has_norm = pre_norm or self.always_ends_with_norm
        self.norm = nn.LayerNorm(embed_dim) if has_norm else nn.Identity()
        self.checkpoint_layers = checkpoint_layers

    def _run(self, layer: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpoint_layers and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


class TransformerEncoder(_Stack):
    """A stack of encoder layers; with `pre_norm` one more norm at the end, even of an empty stack."""

    layer_type = TransformerEncoderLayer
    always_ends_with_norm = False

    def forward(self, tokens_BSC: Tensor, position_SC: Tensor) -> Tensor:
        """Args: content and positions. -> (B, S, C)."""
        for layer in self.layers:
            tokens_BSC = self._run(layer, tokens_BSC, position_SC)
        return self.norm(tokens_BSC)


class TransformerDecoder(_Stack):
    """A stack of decoder layers; queries start without content, and one norm serves the outputs of all layers."""

    layer_type = TransformerDecoderLayer
    always_ends_with_norm = True

    def forward(self, query_position_QC: Tensor, key_BSC: Tensor, value_BSC: Tensor, *, all_layers: bool) -> Tensor:
        """Args: positions of the queries, keys with positions added, values. -> (L, B, Q, C), or (1, B, Q, C)."""
        query_BQC = torch.zeros_like(query_position_QC).expand(len(value_BSC), -1, -1)
        outputs = []
        for layer in self.layers:
            query_BQC = self._run(layer, query_BQC, query_position_QC, key_BSC, value_BSC)
            outputs.append(query_BQC)
        return self.norm(torch.stack(outputs if all_layers else outputs[-1:]))


class Transformer(nn.Module):
    """Encoder and decoder: from the cells of a map to queries that have read it."""

    def __init__(self, *, encoder: TransformerEncoder, decoder: TransformerDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(
        self, tokens_BSC: Tensor, position_SC: Tensor, query_position_QC: Tensor, *, all_layers: bool
    ) -> Tensor:
        """Args: content and positions of the cells, positions of the queries. -> (L, B, Q, C), or (1, B, Q, C)."""
        memory_BSC = self.encoder(tokens_BSC, position_SC)
        return self.decoder(query_position_QC, memory_BSC + position_SC, memory_BSC, all_layers=all_layers)
