"""Routing of features through the head, and the names a config may not get wrong."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config
from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead
from mask2former.registry import PIXEL_DECODER_REGISTRY

CHANNELS = {"res2": 8, "res3": 12, "res4": 16, "res5": 20}
INPUT_SHAPE = {name: ShapeSpec(channels=c, stride=4 * 2**i) for i, (name, c) in enumerate(CHANNELS.items())}


def _cfg(**changes: Any) -> CfgNode:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.IN_FEATURES = list(CHANNELS)
    head.NUM_CLASSES, head.CONVS_DIM, head.MASK_DIM, head.TRANSFORMER_ENC_LAYERS = 3, 32, 32, 1
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    mask_former.HIDDEN_DIM, mask_former.DIM_FEEDFORWARD, mask_former.DEC_LAYERS = 32, 48, 4
    mask_former.NUM_OBJECT_QUERIES, mask_former.NHEADS, mask_former.DROPOUT = 5, 4, 0.0
    mask_former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    for key, value in changes.items():
        (head if key in head else mask_former)[key] = value
    return cfg


def _features(frames: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(frames, c, 64 // 2**i, 96 // 2**i) for i, (name, c) in enumerate(CHANNELS.items())}


def test_inference_gives_one_prediction_of_published_shape() -> None:
    head = MaskFormerHead(_cfg(), INPUT_SHAPE).eval()
    outputs = head(_features(2))
    assert sorted(outputs) == ["pred_logits", "pred_masks"]
    assert outputs["pred_logits"].shape == (2, 5, 4)
    assert outputs["pred_masks"].shape == (2, 5, 64, 96)


def test_training_adds_every_earlier_prediction() -> None:
    head = MaskFormerHead(_cfg(), INPUT_SHAPE).train()
    outputs = head(_features(1))
    assert len(outputs["aux_outputs"]) == 3
    assert outputs["aux_outputs"][0]["pred_masks"].shape == outputs["pred_masks"].shape


def test_a_clip_gives_masks_per_frame_and_one_class_per_query() -> None:
    outputs = MaskFormerHead(_cfg(), INPUT_SHAPE).eval()(_features(4), num_frames=2)
    assert outputs["pred_logits"].shape == (2, 5, 4)
    assert outputs["pred_masks"].shape == (2, 5, 2, 64, 96)


@pytest.mark.parametrize("source", ["transformer_encoder", "pixel_embedding", "res4"])
def test_a_decoder_of_one_map_reads_what_the_config_names(source: str) -> None:
    changes = {"TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder", "TRANSFORMER_IN_FEATURE": source}
    head = MaskFormerHead(
        _cfg(PIXEL_DECODER_NAME="TransformerEncoderPixelDecoder", MASK_DIM=24, **changes), INPUT_SHAPE
    )
    features = _features(2)
    read: list[torch.Tensor] = []
    head.predictor.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    outputs = head(features)
    mask_features, encoder_map, _ = head.pixel_decoder.forward_features(features)
    expected = {"transformer_encoder": encoder_map, "pixel_embedding": mask_features, "res4": features["res4"]}
    torch.testing.assert_close(read[0], expected[source])
    assert outputs["pred_masks"].shape == (2, 5, 64, 96)


@pytest.mark.parametrize(("deep_supervision", "num_earlier"), [(True, 3), (False, 0)])
def test_maskformers_decoder_predicts_once_per_layer_or_once(deep_supervision: bool, num_earlier: int) -> None:
    changes = {"TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder", "TRANSFORMER_IN_FEATURE": "res5"}
    cfg = _cfg(PIXEL_DECODER_NAME="BasePixelDecoder", DEEP_SUPERVISION=deep_supervision, **changes)
    outputs = MaskFormerHead(cfg, INPUT_SHAPE).train()(_features(1))
    assert len(outputs["aux_outputs"]) == num_earlier


@pytest.mark.parametrize(
    ("key", "config_key"),
    [
        ("PIXEL_DECODER_NAME", "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"),
        ("TRANSFORMER_DECODER_NAME", "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"),
        ("TRANSFORMER_IN_FEATURE", "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE"),
    ],
)
def test_an_unknown_name_is_refused_with_its_key(key: str, config_key: str) -> None:
    with pytest.raises(ValueError, match=rf"{config_key}='nonsense' is unknown; choose from"):
        MaskFormerHead(_cfg(**{key: "nonsense"}), INPUT_SHAPE)


@pytest.mark.parametrize("names", [["p3"], ["res2", "res3", "res4", "res6"], []])
def test_backbone_features_that_do_not_exist_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="must name some of the backbone's outputs: res2, res3, res4, res5"):
        MaskFormerHead(_cfg(IN_FEATURES=names), INPUT_SHAPE)


@pytest.mark.parametrize("name", ["MaskFormerHead", "PerPixelBaselineHead"])
def test_a_head_is_no_pixel_decoder(name: str) -> None:
    with pytest.raises(ValueError, match=rf"PIXEL_DECODER_NAME='{name}' is no pixel decoder: .*forward_features"):
        MaskFormerHead(_cfg(PIXEL_DECODER_NAME=name), INPUT_SHAPE)


def test_what_a_function_builds_must_be_a_pixel_decoder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIXEL_DECODER_REGISTRY._obj_map, "function", lambda cfg, input_shape: torch.nn.Identity())
    with pytest.raises(ValueError, match="'function' is no pixel decoder"):
        MaskFormerHead(_cfg(PIXEL_DECODER_NAME="function"), INPUT_SHAPE)
