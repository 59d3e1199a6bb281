"""Backbones beyond Detectron2's."""

from .swin import D2SwinTransformer
from .timm_backbone import TimmBackbone

__all__ = ["D2SwinTransformer", "TimmBackbone"]
