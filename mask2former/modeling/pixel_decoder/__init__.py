"""Pixel decoders: from backbone maps to per-pixel embeddings and multi-scale features."""

from .msdeformattn import MSDeformAttnPixelDecoder

__all__ = ["MSDeformAttnPixelDecoder"]
