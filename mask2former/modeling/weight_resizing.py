"""Tensors whose size follows a setting that may change between two models of one architecture."""
# M window side, N tokens, S side of a square of tokens, h heads, C channels, Q queries.

from __future__ import annotations

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resized"]

_QUERIES = ("sem_seg_head.predictor.query_feat.weight", "sem_seg_head.predictor.query_embed.weight")
_NOISE = 0.05  # of the spread of the old queries


def resized(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The tensor in another size, where that has a meaning: position tables of a backbone, and queries.

    Args:
        name: of the model's tensor.
        tensor: the file's, of another shape.
        shape: the model's.

    Returns:
        float32 of that shape, or None where the difference is one of architecture.
    """
    if name in _QUERIES:
        return _queries(name, tensor, shape)
    if name.endswith(".relative_position_bias_table"):
        return _bias_table(tensor, shape)
    if name.endswith(".absolute_pos_embed"):
        return _position_map(tensor, shape)
    if name.endswith(".pos_embed"):
        return _position_tokens(tensor, shape)
    return None


def _queries(name: str, queries_QC: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The first queries, or all of them over and over until there are enough."""
    if queries_QC.dim() != 2 or queries_QC.shape[1:] != shape[1:]:
        return None
    old_QC = queries_QC.float()
    rows = torch.arange(shape[0])
    new_QC = old_QC[rows % len(old_QC)]
    # Two equal queries would give equal predictions, of which the matcher can use one only, and stay alike but for
    # that: a little noise lets copies take different objects. Seeded, so that all ranks have the same queries.
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise_QC = torch.randn(new_QC.shape, generator=generator) * (_NOISE * old_QC.std())
    return torch.where((rows >= len(old_QC))[:, None], new_QC + noise_QC, new_QC)


def _bias_table(table_Nh: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Swin's bias for every offset between two tokens of a window, (2M - 1)^2 of them, for another window."""
    sides = [math.isqrt(count) for count in (len(table_Nh), shape[0])]
    if table_Nh.shape[1:] != shape[1:] or sides[0] ** 2 != len(table_Nh) or sides[1] ** 2 != shape[0]:
        return None
    table_1hSS = table_Nh.float().t().unflatten(1, (sides[0], sides[0])).unsqueeze(0)
    return _bicubic(table_1hSS, (sides[1], sides[1]))[0].flatten(1).t()


def _position_map(embedding: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Swin's absolute position embedding (1, C, S, S); the files of its authors hold (1, S*S, C)."""
    if embedding.dim() == 3 and math.isqrt(embedding.shape[1]) ** 2 == embedding.shape[1]:
        side = math.isqrt(embedding.shape[1])
        embedding = embedding.transpose(1, 2).unflatten(2, (side, side))
    if embedding.dim() != 4 or embedding.shape[:2] != shape[:2]:
        return None
    return _bicubic(embedding.float(), shape[2:])


def _position_tokens(embedding_1NC: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A plain ViT's position embedding: class and register tokens, if any, then a square of patches."""
    if embedding_1NC.dim() != 3 or len(shape) != 3 or embedding_1NC.shape[2] != shape[2]:
        return None
    old_side, new_side = (math.isqrt(count) for count in (embedding_1NC.shape[1], shape[1]))
    num_prefix, new_num_prefix = embedding_1NC.shape[1] - old_side**2, shape[1] - new_side**2
    if new_num_prefix not in (0, num_prefix):
        return None
    prefix_1NC, patches_1NC = embedding_1NC.float().split([num_prefix, old_side**2], dim=1)
    patches_1CSS = patches_1NC.transpose(1, 2).unflatten(2, (old_side, old_side))
    new_patches_1NC = _bicubic(patches_1CSS, (new_side, new_side)).flatten(2).transpose(1, 2)
    return torch.cat([prefix_1NC[:, :new_num_prefix], new_patches_1NC], dim=1)


def _bicubic(image_BCSS: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(image_BCSS, size=size, mode="bicubic", align_corners=False)
