"""Names of tensors in transformers' `Mask2FormerForUniversalSegmentation` and here: one table for both directions.

Their side is the layout of files. transformers 4.x named its modules so; 5.x calls those of Swin otherwise in memory,
and still saves under these names.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["BACKBONE", "our_name", "their_names"]

BACKBONE = "model.pixel_level_module.encoder."
_SWIN_BLOCK = f"{BACKBONE}encoder.layers.<stage>.blocks.<block>."
_RESNET_BLOCK = f"{BACKBONE}encoder.stages.<stage>.layers.<block>."
_PIXEL_DECODER = "model.pixel_level_module.decoder."
_DECODER = "model.transformer_module.decoder."
_DECODER_LAYER = f"{_DECODER}layers.<layer>."

_OUR_SWIN_BLOCK = "backbone.layers.<stage>.blocks.<block>."
_OUR_RESNET_BLOCK = "backbone.res<stage+2>.<block>."
_OUR_PIXEL_DECODER = "sem_seg_head.pixel_decoder."
_OUR_DECODER = "sem_seg_head.predictor."


class _Row(NamedTuple):
    """One line of the table: `<rest>` is any text, `<kind>` weight or bias, any other field a number.

    `<stage+2>` is a number that is ahead by 2 of `<stage>` on the other side.
    """

    theirs: str
    ours: str
    part: int | None = None  # 0, 1, 2: query, key, value of a projection that is one tensor here


_RESNET = (
    _Row(f"{BACKBONE}embedder.embedder.convolution.<kind>", "backbone.stem.conv1.<kind>"),
    _Row(f"{BACKBONE}embedder.embedder.normalization.<rest>", "backbone.stem.conv1.norm.<rest>"),
    _Row(f"{_RESNET_BLOCK}shortcut.convolution.<kind>", f"{_OUR_RESNET_BLOCK}shortcut.<kind>"),
    _Row(f"{_RESNET_BLOCK}shortcut.normalization.<rest>", f"{_OUR_RESNET_BLOCK}shortcut.norm.<rest>"),
    _Row(f"{_RESNET_BLOCK}layer.<conv>.convolution.<kind>", f"{_OUR_RESNET_BLOCK}conv<conv+1>.<kind>"),
    _Row(f"{_RESNET_BLOCK}layer.<conv>.normalization.<rest>", f"{_OUR_RESNET_BLOCK}conv<conv+1>.norm.<rest>"),
)
_SWIN = (
    _Row(f"{BACKBONE}embeddings.patch_embeddings.projection.<kind>", "backbone.patch_embed.proj.<kind>"),
    _Row(f"{BACKBONE}embeddings.norm.<kind>", "backbone.patch_embed.norm.<kind>"),
    *(
        _Row(f"{_SWIN_BLOCK}attention.self.{name}.<kind>", f"{_OUR_SWIN_BLOCK}attn.qkv.<kind>", part)
        for part, name in enumerate(("query", "key", "value"))
    ),
    _Row(
        f"{_SWIN_BLOCK}attention.self.relative_position_bias_table",
        f"{_OUR_SWIN_BLOCK}attn.relative_position_bias_table",
    ),
    _Row(f"{_SWIN_BLOCK}attention.output.dense.<kind>", f"{_OUR_SWIN_BLOCK}attn.proj.<kind>"),
    _Row(f"{_SWIN_BLOCK}layernorm_before.<kind>", f"{_OUR_SWIN_BLOCK}norm1.<kind>"),
    _Row(f"{_SWIN_BLOCK}layernorm_after.<kind>", f"{_OUR_SWIN_BLOCK}norm2.<kind>"),
    _Row(f"{_SWIN_BLOCK}intermediate.dense.<kind>", f"{_OUR_SWIN_BLOCK}mlp.fc1.<kind>"),
    _Row(f"{_SWIN_BLOCK}output.dense.<kind>", f"{_OUR_SWIN_BLOCK}mlp.fc2.<kind>"),
    _Row(f"{BACKBONE}encoder.layers.<stage>.downsample.<rest>", "backbone.layers.<stage>.downsample.<rest>"),
    _Row(f"{BACKBONE}hidden_states_norms.stage<stage+1>.<kind>", "backbone.norm<stage>.<kind>"),
)
_PIXEL_DECODER_ROWS = (
    _Row(f"{_PIXEL_DECODER}level_embed", f"{_OUR_PIXEL_DECODER}transformer.level_embed"),
    _Row(f"{_PIXEL_DECODER}input_projections.<rest>", f"{_OUR_PIXEL_DECODER}input_proj.<rest>"),
    _Row(f"{_PIXEL_DECODER}mask_projection.<kind>", f"{_OUR_PIXEL_DECODER}mask_features.<kind>"),
    _Row(f"{_PIXEL_DECODER}adapter_<level>.0.<kind>", f"{_OUR_PIXEL_DECODER}adapter_<level>.<kind>"),
    _Row(f"{_PIXEL_DECODER}adapter_<level>.1.<kind>", f"{_OUR_PIXEL_DECODER}adapter_<level>.norm.<kind>"),
    _Row(f"{_PIXEL_DECODER}layer_<level>.0.<kind>", f"{_OUR_PIXEL_DECODER}layer_<level>.<kind>"),
    _Row(f"{_PIXEL_DECODER}layer_<level>.1.<kind>", f"{_OUR_PIXEL_DECODER}layer_<level>.norm.<kind>"),
    *(
        _Row(
            f"{_PIXEL_DECODER}encoder.layers.<layer>.{theirs}.<rest>",
            f"{_OUR_PIXEL_DECODER}transformer.encoder.layers.<layer>.{ours}.<rest>",
        )
        for theirs, ours in (
            ("self_attn", "self_attn"),
            ("self_attn_layer_norm", "norm1"),
            ("fc1", "linear1"),
            ("fc2", "linear2"),
            ("final_layer_norm", "norm2"),
        )
    ),
)
_TRANSFORMER_DECODER_ROWS = (
    *(
        _Row(
            f"{_DECODER_LAYER}self_attn.{name}_proj.<kind>",
            f"{_OUR_DECODER}transformer_self_attention_layers.<layer>.self_attn.in_proj_<kind>",
            part,
        )
        for part, name in enumerate(("q", "k", "v"))
    ),
    *(
        _Row(f"{_DECODER_LAYER}{theirs}.<rest>", f"{_OUR_DECODER}transformer_{ours}.<rest>")
        for theirs, ours in (
            ("self_attn.out_proj", "self_attention_layers.<layer>.self_attn.out_proj"),
            ("self_attn_layer_norm", "self_attention_layers.<layer>.norm"),
            ("cross_attn", "cross_attention_layers.<layer>.multihead_attn"),
            ("cross_attn_layer_norm", "cross_attention_layers.<layer>.norm"),
            ("fc1", "ffn_layers.<layer>.linear1"),
            ("fc2", "ffn_layers.<layer>.linear2"),
            ("final_layer_norm", "ffn_layers.<layer>.norm"),
        )
    ),
    _Row(f"{_DECODER}layernorm.<kind>", f"{_OUR_DECODER}decoder_norm.<kind>"),
    _Row(f"{_DECODER}mask_predictor.mask_embedder.<layer>.0.<kind>", f"{_OUR_DECODER}mask_embed.layers.<layer>.<kind>"),
    _Row("model.transformer_module.queries_embedder.weight", f"{_OUR_DECODER}query_embed.weight"),
    _Row("model.transformer_module.queries_features.weight", f"{_OUR_DECODER}query_feat.weight"),
    _Row("model.transformer_module.level_embed.weight", f"{_OUR_DECODER}level_embed.weight"),
    _Row("model.transformer_module.input_projections.<rest>", f"{_OUR_DECODER}input_proj.<rest>"),
    _Row("class_predictor.<kind>", f"{_OUR_DECODER}class_embed.<kind>"),
    _Row("criterion.empty_weight", "criterion.empty_weight"),
)
_TABLE = (*_RESNET, *_SWIN, *_PIXEL_DECODER_ROWS, *_TRANSFORMER_DECODER_ROWS)

#: What transformers 5.x calls the modules of Swin in memory, and in files.
_IN_MEMORY_AND_IN_FILES = (
    (f"{BACKBONE}swin.", BACKBONE),
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".attention.relative_position_bias.", ".attention.self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def our_name(name: str) -> tuple[str, int | None] | None:
    """Our name of a tensor of theirs, in a file or in memory, and which third of our tensor it is (None: all of it).

    None where the table does not know the name.
    """
    if name.startswith(BACKBONE):
        for in_memory, in_files in _IN_MEMORY_AND_IN_FILES:
            name = name.replace(in_memory, in_files)
    return next(iter(_translations(name, _TO_OURS)), None)


def their_names(name: str) -> list[tuple[str, int | None]]:
    """Names in files of transformers that a tensor of ours is saved under, with the third of it that each one takes.

    Three for a joined projection, none where the table does not know the name.
    """
    return _translations(name, _TO_THEIRS)


class _Rule(NamedTuple):
    """One direction of a row."""

    pattern: re.Pattern[str]
    leads: dict[str, int]  # how far the pattern's numbers are ahead
    target: str
    part: int | None


_FIELD = re.compile(r"<(\w+)(?:\+(\d+))?>")
_TEXTS = {"rest": ".+", "kind": "weight|bias"}


def _rule(source: str, target: str, part: int | None) -> _Rule:
    def group(field: re.Match[str]) -> str:
        return f"(?P<{field[1]}>{_TEXTS.get(field[1], '[0-9]+')})"

    leads = {field[1]: int(field[2]) for field in _FIELD.finditer(source) if field[2]}
    # Of the literal text only the dots mean something to a pattern.
    return _Rule(re.compile(_FIELD.sub(group, source.replace(".", r"\."))), leads, target, part)


_TO_OURS = tuple(_rule(row.theirs, row.ours, row.part) for row in _TABLE)
_TO_THEIRS = tuple(_rule(row.ours, row.theirs, row.part) for row in _TABLE)


def _translations(name: str, rules: tuple[_Rule, ...]) -> list[tuple[str, int | None]]:
    translations = []
    for rule in rules:
        if (match := rule.pattern.fullmatch(name)) is None:
            continue
        values = {
            field: str(int(value) - rule.leads[field]) if field in rule.leads else value
            for field, value in match.groupdict().items()
        }
        translations.append((_filled(rule.target, values), rule.part))
    return translations


def _filled(template: str, values: dict[str, str]) -> str:
    def text(field: re.Match[str]) -> str:
        value = values[field[1]]
        return str(int(value) + int(field[2])) if field[2] else value

    return _FIELD.sub(text, template)
