"""The network computes what the original computed: from equal weights and pictures, equal numbers at every stage."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

from mask2former.config import load_config
from tests.golden import CONFIGS, deviation, fill_deterministically, golden, network_input

R50_COCO_PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
R50_COCO_INSTANCE = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
R50_ADE20K = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
SWIN_TINY = "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml"
SWIN_BASE = [
    *("MODEL.SWIN.EMBED_DIM", 128, "MODEL.SWIN.DEPTHS", [2, 2, 18, 2], "MODEL.SWIN.NUM_HEADS", [4, 8, 16, 32]),
    *("MODEL.SWIN.WINDOW_SIZE", 12, "MODEL.SWIN.PRETRAIN_IMG_SIZE", 384),
]

#: Recorded model -> our file and what to change in it besides the recorded overrides.
MODELS: dict[str, tuple[str, list[Any]]] = {
    "mask2former_R50_coco_panoptic": (R50_COCO_PANOPTIC, []),
    "mask2former_R50_coco_instance": (R50_COCO_INSTANCE, []),
    "mask2former_R50_prenorm_enforce_proj": (R50_COCO_INSTANCE, []),
    "mask2former_R103_deeplab_FrozenBN": (R50_ADE20K, []),
    "mask2former_swinT_ade20k": (SWIN_TINY, []),
    "mask2former_swinB_w12_ade20k": (SWIN_TINY, SWIN_BASE),
    "mask2former_swinT_APE": (SWIN_TINY, []),
}

# Noise of 1e-6 in the input changes mask logits by up to 1.4e-4, and a mask that changes sign changes where its query
# looks. Here the figures agree within 1e-5.
TOLERANCE = 1e-3


class Recorded(NamedTuple):
    """The original's fingerprints of one model, and our tensors."""

    expected: dict[str, Any]
    features: dict[str, Tensor]
    mask_features: Tensor
    encoder_features: Tensor
    multi_scale: list[Tensor]
    outputs: dict[str, Any]


@pytest.fixture(scope="module", params=MODELS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    expected = golden()[request.param]
    file, changes = MODELS[request.param]
    overrides = [*changes, *expected["overrides"], "MODEL.DEVICE", "cpu", "MODEL.SWIN.DROP_PATH_RATE", 0.0]
    model = build_model(load_config(CONFIGS / file, overrides))
    fill_deterministically(model)
    # Training mode gives auxiliary outputs; nothing else depends on it (frozen norms, no dropout).
    model.train()
    image = network_input(expected["image_seed"], expected["image_size"], expected["padded_size"])
    with torch.no_grad():
        features = model.backbone(image)
        decoded = model.sem_seg_head.pixel_decoder.forward_features(features)
        outputs = model.sem_seg_head(features)
    return Recorded(expected, features, *decoded, outputs)


def test_backbone_maps_are_the_recorded_ones(recorded: Recorded) -> None:
    assert list(recorded.features) == list(recorded.expected["backbone"])
    for name, fingerprint in recorded.expected["backbone"].items():
        assert deviation(recorded.features[name], fingerprint) < TOLERANCE, name


def test_pixel_decoder_outputs_are_the_recorded_ones(recorded: Recorded) -> None:
    expected = recorded.expected["pixel_decoder"]
    assert deviation(recorded.mask_features, expected["mask_features"]) < TOLERANCE
    assert deviation(recorded.encoder_features, expected["transformer_encoder_features"]) < TOLERANCE
    for level, fingerprint in zip(recorded.multi_scale, expected["multi_scale"], strict=True):
        assert deviation(level, fingerprint) < TOLERANCE


@pytest.mark.parametrize("name", ["pred_logits", "pred_masks"])
def test_final_predictions_are_the_recorded_ones(recorded: Recorded, name: str) -> None:
    assert deviation(recorded.outputs[name], recorded.expected[name]) < TOLERANCE


@pytest.mark.parametrize("name", ["pred_logits", "pred_masks"])
def test_auxiliary_predictions_are_the_recorded_ones(recorded: Recorded, name: str) -> None:
    for output, fingerprints in zip(recorded.outputs["aux_outputs"], recorded.expected["aux"], strict=True):
        assert deviation(output[name], fingerprints[name]) < TOLERANCE
