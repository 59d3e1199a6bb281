"""Parameter groups as published, fewer of them, and clipping over the whole model."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from mask2former.config import load_config
from mask2former.engine.optimizer import build_gradient_clipper, build_optimizer
from tests.golden import CONFIGS, golden

SWIN_TINY = "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml"
#: Recorded model -> published file, and what was changed in it.
RECORDED = {
    "coco_R50": ("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", []),
    "cityscapes_R50_SyncBN": ("cityscapes/panoptic-segmentation/maskformer2_R50_bs16_90k.yaml", []),
    "ade20k_swinT": (SWIN_TINY, []),
    "ade20k_swinT_APE": (SWIN_TINY, ["MODEL.SWIN.APE", True]),
    "maskformer_R50": (
        "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
        [
            *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
            *("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
            *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"),
        ],
    ),
}


def _config(*overrides, path="coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"):
    return load_config(CONFIGS / path, ["MODEL.DEVICE", "cpu", *overrides])


def test_every_recorded_table_of_groups_is_compared():
    assert set(RECORDED) == set(golden()["optimizer_groups"])


@pytest.mark.parametrize("entry", RECORDED)
def test_tensors_have_the_published_rates_and_decays_in_one_group_for_each_pair(entry):
    path, overrides = RECORDED[entry]
    cfg = _config(*overrides, path=path)
    optimizer = build_optimizer(cfg, build_model(cfg))
    expected = golden()["optimizer_groups"][entry]
    table = {
        f"lr={group['lr']:g},weight_decay={group['weight_decay']:g}": {
            "tensors": len(group["params"]),
            "elements": sum(parameter.numel() for parameter in group["params"]),
        }
        for group in optimizer.param_groups
    }
    assert table == {
        key: {"tensors": group["tensors"], "elements": group["elements"]} for key, group in expected["groups"].items()
    }
    assert type(optimizer).__name__ == expected["type"]
    assert list(optimizer.defaults["betas"]) == expected["betas"]
    assert optimizer.defaults["eps"] == expected["eps"]


def _model_with_gradients():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def test_sgd_is_the_other_choice():
    cfg = _config("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", "0.7")
    optimizer = build_optimizer(cfg, _model_with_gradients())
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["momentum"] == 0.7


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER='ADAM' is unknown; choose from: ADAMW, SGD"):
        build_optimizer(_config("SOLVER.OPTIMIZER", "ADAM"), nn.Linear(1, 1))


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_optimizer(_config(), nn.Linear(1, 1).requires_grad_(False))


def test_full_model_clipping_scales_all_gradients_by_their_joint_norm():
    model = _model_with_gradients()
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    norm = build_gradient_clipper(_config())(model.parameters())
    assert norm.item() == pytest.approx(num_elements**0.5)
    for parameter in model.parameters():
        expected = torch.full_like(parameter, 0.01 / num_elements**0.5)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("clipping", [("ENABLED", "False"), ("CLIP_TYPE", "value"), ("CLIP_VALUE", "0.0")])
def test_without_full_model_clipping_the_norm_is_only_measured(clipping):
    key, value = clipping
    model = _model_with_gradients()
    norm = build_gradient_clipper(_config(f"SOLVER.CLIP_GRADIENTS.{key}", value))(model.parameters())
    assert norm.item() == pytest.approx(26**0.5)
    assert all((parameter.grad == 1).all() for parameter in model.parameters())


def test_clipping_by_value_happens_in_the_optimizer():
    model = _model_with_gradients()
    overrides = ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"]
    build_optimizer(_config(*overrides), model).step()
    assert all((parameter.grad == 0.5).all() for parameter in model.parameters())


def test_an_unknown_clip_type_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="CLIP_TYPE='all' is unknown; choose from: full_model, norm, value"):
        build_optimizer(_config("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"), nn.Linear(1, 1))
