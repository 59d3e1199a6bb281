"""Transformer decoders: from features to queries, classes and masks."""

from .mask2former_transformer_decoder import MultiScaleMaskedTransformerDecoder, VideoMultiScaleMaskedTransformerDecoder
from .maskformer_transformer_decoder import StandardTransformerDecoder

__all__ = [
    "MultiScaleMaskedTransformerDecoder",
    "StandardTransformerDecoder",
    "VideoMultiScaleMaskedTransformerDecoder",
]
