"""Transformer decoders: from features to queries, classes and masks."""

from .mask2former_transformer_decoder import MultiScaleMaskedTransformerDecoder

__all__ = ["MultiScaleMaskedTransformerDecoder"]
