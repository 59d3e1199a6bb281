"""Rates and decays of the parameters of timm's models."""

from __future__ import annotations

from mask2former.engine.optimizer import build_optimizer
from tests.tiny_model import tiny_config, tiny_model


def _timm_settings(name):
    """Tensor -> (rate, decay) of a model with a timm backbone."""
    overrides = ("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.TIMM.NAME", name)
    model, cfg = tiny_model(*overrides), tiny_config(*overrides)
    cfg.merge_from_list(["SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 0.05, "SOLVER.BACKBONE_MULTIPLIER", 0.1])
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }


def test_position_embeddings_and_class_tokens_of_timm_are_not_decayed():
    settings = _timm_settings("test_vit")
    assert settings["backbone.model.pos_embed"] == settings["backbone.model.cls_token"] == (0.1, 0.0)
    assert settings["backbone.model.blocks.0.attn.qkv.weight"] == (0.1, 0.05)


def test_layer_scales_are_not_decayed():
    settings = _timm_settings("test_convnext")
    assert settings["backbone.model.stages.0.blocks.0.gamma"] == (0.1, 0.0)
    assert settings["backbone.model.stages.0.blocks.0.conv_dw.weight"] == (0.1, 0.05)


def test_a_new_pyramid_learns_at_the_full_rate():
    settings = _timm_settings("test_vit")
    pyramid = {name: rate for name, (rate, _) in settings.items() if name.startswith("backbone.pyramid.")}
    assert pyramid and set(pyramid.values()) == {1.0}
