"""How scaled dot-product attention is written in ONNX."""

# B batch, h heads, Q queries, S keys, d channels of a head.

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

__all__ = ["attention_in"]


def attention_in(opset: int) -> Callable[..., Any]:
    """The translation of `aten::scaled_dot_product_attention` for the models of this package.

    That of the exporter looks for queries that may look nowhere, and for their sake copies the weights of all heads
    twice. Here no query is without a key: masks that exclude all are lifted, and windows see themselves.

    Args:
        opset: of the graph.

    Raises:
        ModuleNotFoundError: onnxscript is not installed.
    """
    op: Any = getattr(importlib.import_module("onnxscript"), f"opset{opset}")

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        """query (B, h, Q, d), key and value (B, h, S, d); mask (B, 1 or h, Q, S), bool or added."""
        if dropout_p or is_causal or enable_gqa:
            raise ValueError("attention with dropout, causal or with groups of queries is not part of these models")
        rank = len(query.shape)
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scaled = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))
        logits = op.MatMul(scaled, op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2]))
        if attn_mask is not None:
            if attn_mask.dtype.name == "BOOL":
                nothing, everything = (
                    op.CastLike(op.Constant(value_float=number), query) for number in (0.0, -math.inf)
                )
                attn_mask = op.Where(attn_mask, nothing, everything)
            logits = op.Add(logits, attn_mask)
        return op.MatMul(op.Softmax(logits, axis=-1), value)

    return attention
