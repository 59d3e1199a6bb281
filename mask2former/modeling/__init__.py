"""The network's parts; importing this package registers those that a config can select by name."""

from . import backbone, meta_arch, pixel_decoder, transformer_decoder

__all__ = ["backbone", "meta_arch", "pixel_decoder", "transformer_decoder"]
