"""Tensors keep their values under the names of transformers, and come back."""

from __future__ import annotations

import pytest
import torch

from mask2former.modeling.transformers_weights import from_transformers, to_transformers
from tests.modeling.transformers_cases import CASES, case_config, case_model

#: Names of published checkpoints (transformers 4.x), what 5.x calls them in memory, and ours.
SAMPLES = [
    (
        "model.pixel_level_module.encoder.embeddings.patch_embeddings.projection.weight",
        "model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection.weight",
        "backbone.patch_embed.proj.weight",
    ),
    (
        "model.pixel_level_module.encoder.encoder.layers.2.blocks.5.attention.self.relative_position_bias_table",
        "model.pixel_level_module.encoder.swin.encoder.layers.2.blocks.5.attention.relative_position_bias"
        ".relative_position_bias_table",
        "backbone.layers.2.blocks.5.attn.relative_position_bias_table",
    ),
    (
        "model.pixel_level_module.encoder.encoder.layers.0.blocks.1.attention.output.dense.bias",
        "model.pixel_level_module.encoder.swin.encoder.layers.0.blocks.1.attention.o_proj.bias",
        "backbone.layers.0.blocks.1.attn.proj.bias",
    ),
    (
        "model.pixel_level_module.encoder.encoder.layers.0.blocks.1.output.dense.weight",
        "model.pixel_level_module.encoder.swin.encoder.layers.0.blocks.1.mlp.fc2.weight",
        "backbone.layers.0.blocks.1.mlp.fc2.weight",
    ),
    *(
        (name, name, ours)
        for name, ours in (
            ("model.pixel_level_module.encoder.hidden_states_norms.stage1.bias", "backbone.norm0.bias"),
            (
                "model.pixel_level_module.encoder.encoder.stages.3.layers.0.layer.2.normalization.running_mean",
                "backbone.res5.0.conv3.norm.running_mean",
            ),
            ("model.pixel_level_module.decoder.layer_1.1.weight", "sem_seg_head.pixel_decoder.layer_1.norm.weight"),
            (
                "model.pixel_level_module.decoder.encoder.layers.5.final_layer_norm.weight",
                "sem_seg_head.pixel_decoder.transformer.encoder.layers.5.norm2.weight",
            ),
            (
                "model.transformer_module.decoder.layers.8.cross_attn.in_proj_bias",
                "sem_seg_head.predictor.transformer_cross_attention_layers.8.multihead_attn.in_proj_bias",
            ),
            (
                "model.transformer_module.decoder.mask_predictor.mask_embedder.0.0.weight",
                "sem_seg_head.predictor.mask_embed.layers.0.weight",
            ),
            ("class_predictor.weight", "sem_seg_head.predictor.class_embed.weight"),
            ("criterion.empty_weight", "criterion.empty_weight"),
        )
    ),
]


@pytest.mark.parametrize(("in_files", "in_memory", "ours"), SAMPLES)
def test_a_tensor_has_one_name_here_and_one_in_files(in_files, in_memory, ours):
    tensor = torch.ones(3)
    assert list(from_transformers({in_files: tensor})) == list(from_transformers({in_memory: tensor})) == [ours]
    assert in_files in to_transformers({ours: tensor})


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_every_bit_is_kept(case):
    state_dict = case_model(case_config(case)).state_dict()
    back = from_transformers(to_transformers(state_dict))
    derived = (".relative_position_index", ".num_batches_tracked")
    assert set(back) == {name for name in state_dict if not name.endswith(derived)}
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in back.items())


@pytest.mark.parametrize(
    ("ours", "prefix", "names"),
    [
        (
            "backbone.layers.0.blocks.0.attn.qkv.bias",
            "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.",
            ["query.bias", "key.bias", "value.bias"],
        ),
        (
            "sem_seg_head.predictor.transformer_self_attention_layers.4.self_attn.in_proj_weight",
            "model.transformer_module.decoder.layers.4.self_attn.",
            ["q_proj.weight", "k_proj.weight", "v_proj.weight"],
        ),
    ],
)
def test_a_projection_is_query_then_key_then_value(ours, prefix, names):
    joined = torch.arange(6.0)
    split = to_transformers({ours: joined})
    assert [split[prefix + name].tolist() for name in names] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    shuffled = {prefix + name: split[prefix + name] for name in reversed(names)}
    assert torch.equal(from_transformers(shuffled)[ours], joined)


def test_a_missing_third_of_a_projection_is_named():
    names = [f"model.transformer_module.decoder.layers.0.self_attn.{part}_proj.bias" for part in "qv"]
    with pytest.raises(ValueError, match=r"self_attn\.k_proj\.bias' is missing"):
        from_transformers({name: torch.zeros(2) for name in names})


def test_a_tensor_of_another_model_is_named():
    with pytest.raises(ValueError, match=r"'vit\.encoder\.weight'"):
        from_transformers({"vit.encoder.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["backbone.absolute_pos_embed", "sem_seg_head.predictor.transformer.norm.weight"])
def test_a_tensor_that_transformers_lacks_is_named(name):
    with pytest.raises(ValueError, match=name):
        to_transformers({name: torch.zeros(1)})
