"""Weights of transformers' `Mask2FormerForUniversalSegmentation` (5.x) under the names of this project's models."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_transformers"]

_RESNET = r"model\.pixel_level_module\.encoder\.(?:embedder\.|encoder\.)"
_SWIN = r"model\.pixel_level_module\.encoder\.swin\."
_PIXEL_DECODER = r"model\.pixel_level_module\.decoder\."
_DECODER = r"model\.transformer_module\.decoder\."
_HEAD = "sem_seg_head."

#: Tensors without a counterpart: counters that frozen norms do not keep, and a norm that no output passes through.
_IGNORED = re.compile(rf".*\.num_batches_tracked|{_SWIN}layernorm\..*|.*relative_position_index")

#: Applied in order, each to whole names; a name matches at most one pattern of each block.
_RENAMES: tuple[tuple[str, str], ...] = (
    # ResNet. Stages and convolutions count from 0 there, from 2 and 1 here: `_shift_number`.
    (rf"{_RESNET}embedder\.(.*)", r"backbone.stem.conv1.\1"),
    (rf"{_RESNET}stages\.(\d+)\.layers\.(\d+)\.shortcut\.(.*)", r"backbone.res{\1+2}.\2.shortcut.\3"),
    (rf"{_RESNET}stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.(.*)", r"backbone.res{\1+2}.\2.conv{\3+1}.\4"),
    (r"backbone\.(.*)\.convolution\.weight", r"backbone.\1.weight"),
    (r"backbone\.(.*)\.normalization\.(.*)", r"backbone.\1.norm.\2"),
    # Swin
    (rf"{_SWIN}embeddings\.position_embeddings", r"backbone.absolute_pos_embed"),
    (rf"{_SWIN}embeddings\.patch_embeddings\.projection\.(.*)", r"backbone.patch_embed.proj.\1"),
    (rf"{_SWIN}embeddings\.norm\.(.*)", r"backbone.patch_embed.norm.\1"),
    (rf"{_SWIN}encoder\.(layers\..*)", r"backbone.\1"),
    (r"model\.pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)\.(.*)", r"backbone.norm{\1-1}.\2"),
    (r"(backbone\..*)\.attention\.relative_position_bias\.(.*)", r"\1.attn.\2"),
    (r"(backbone\..*)\.attention\.o_proj\.(.*)", r"\1.attn.proj.\2"),
    (r"(backbone\..*)\.attention\.([qkv])_proj\.(weight|bias)", r"\1.attn.qkv.\3 \2"),
    (r"(backbone\..*)\.layernorm_before\.(.*)", r"\1.norm1.\2"),
    (r"(backbone\..*)\.layernorm_after\.(.*)", r"\1.norm2.\2"),
    # Pixel decoder
    (rf"{_PIXEL_DECODER}level_embed", rf"{_HEAD}pixel_decoder.transformer.level_embed"),
    (rf"{_PIXEL_DECODER}input_projections\.(.*)", rf"{_HEAD}pixel_decoder.input_proj.\1"),
    (rf"{_PIXEL_DECODER}mask_projection\.(.*)", rf"{_HEAD}pixel_decoder.mask_features.\1"),
    (rf"{_PIXEL_DECODER}((?:adapter|layer)_\d+)\.0\.(.*)", rf"{_HEAD}pixel_decoder.\1.\2"),
    (rf"{_PIXEL_DECODER}((?:adapter|layer)_\d+)\.1\.(.*)", rf"{_HEAD}pixel_decoder.\1.norm.\2"),
    (rf"{_PIXEL_DECODER}encoder\.(.*)", rf"{_HEAD}pixel_decoder.transformer.encoder.\1"),
    (rf"({_HEAD}pixel_decoder\..*)\.self_attn_layer_norm\.(.*)", r"\1.norm1.\2"),
    (rf"({_HEAD}pixel_decoder\..*)\.final_layer_norm\.(.*)", r"\1.norm2.\2"),
    (rf"({_HEAD}pixel_decoder\..*)\.fc(\d)\.(.*)", r"\1.linear\2.\3"),
    # Transformer decoder
    (rf"{_DECODER}layernorm\.(.*)", rf"{_HEAD}predictor.decoder_norm.\1"),
    (rf"{_DECODER}mask_predictor\.mask_embedder\.(\d)\.0\.(.*)", rf"{_HEAD}predictor.mask_embed.layers.\1.\2"),
    (
        rf"{_DECODER}layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)",
        rf"{_HEAD}predictor.transformer_self_attention_layers.\1.self_attn.in_proj_\3 \2",
    ),
    (
        rf"{_DECODER}layers\.(\d+)\.self_attn\.(.*)",
        rf"{_HEAD}predictor.transformer_self_attention_layers.\1.self_attn.\2",
    ),
    (
        rf"{_DECODER}layers\.(\d+)\.self_attn_layer_norm\.(.*)",
        rf"{_HEAD}predictor.transformer_self_attention_layers.\1.norm.\2",
    ),
    (
        rf"{_DECODER}layers\.(\d+)\.cross_attn\.(.*)",
        rf"{_HEAD}predictor.transformer_cross_attention_layers.\1.multihead_attn.\2",
    ),
    (
        rf"{_DECODER}layers\.(\d+)\.cross_attn_layer_norm\.(.*)",
        rf"{_HEAD}predictor.transformer_cross_attention_layers.\1.norm.\2",
    ),
    (rf"{_DECODER}layers\.(\d+)\.fc(\d)\.(.*)", rf"{_HEAD}predictor.transformer_ffn_layers.\1.linear\2.\3"),
    (rf"{_DECODER}layers\.(\d+)\.final_layer_norm\.(.*)", rf"{_HEAD}predictor.transformer_ffn_layers.\1.norm.\2"),
    (r"model\.transformer_module\.queries_embedder\.(.*)", rf"{_HEAD}predictor.query_embed.\1"),
    (r"model\.transformer_module\.queries_features\.(.*)", rf"{_HEAD}predictor.query_feat.\1"),
    (r"model\.transformer_module\.level_embed\.(.*)", rf"{_HEAD}predictor.level_embed.\1"),
    (r"model\.transformer_module\.input_projections\.(.*)", rf"{_HEAD}predictor.input_proj.\1"),
    (r"class_predictor\.(.*)", rf"{_HEAD}predictor.class_embed.\1"),
)
_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in _RENAMES)


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, and join the query, key and value projections that transformers keeps apart.

    Args:
        state_dict: of a `Mask2FormerForUniversalSegmentation` with a Swin or bottleneck ResNet backbone.

    Returns:
        The same tensors under our names. Missing from it are only `relative_position_index` buffers, which follow from
        the window size.

    Raises:
        ValueError: a name belongs to none of the parts known here.
    """
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if _IGNORED.fullmatch(name):
            continue
        new_name, _, part = _rename(name).partition(" ")
        if part:
            parts.setdefault(new_name, {})[part] = tensor
        else:
            converted[new_name] = tensor
    converted.update({name: torch.cat([part["q"], part["k"], part["v"]]) for name, part in parts.items()})
    return converted


def _rename(name: str) -> str:
    """Our name; a part of a joined projection is named "<joined name> q|k|v"."""
    new_name = name
    for pattern, replacement in _COMPILED:
        if (match := pattern.fullmatch(new_name)) is not None:
            new_name = re.sub(r"\{(\d)([+-]\d)\}", _shift_number, match.expand(replacement))
    if not new_name.startswith(("backbone.", _HEAD, "criterion.")):
        raise ValueError(
            f"{name!r} is no tensor of a Mask2FormerForUniversalSegmentation with a Swin or ResNet backbone"
        )
    return new_name


def _shift_number(match: re.Match[str]) -> str:
    return str(int(match[1]) + int(match[2]))
