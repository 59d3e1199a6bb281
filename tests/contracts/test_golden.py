"""The network computes what the original computed: from equal weights and pictures, equal numbers at every stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_sem_seg_head
from torch import Tensor, nn

from mask2former.config import load_config
from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead
from tests.golden import CONFIGS, deviation, fill_deterministically, golden, network_input

MODELS = {name: entry for name, entry in golden().items() if "config" in entry}
STAGES = ("backbone", "pixel_decoder", "pred_logits", "pred_masks", "aux", "logits")

# Noise of 1e-6 in the input changes mask logits by up to 1.4e-4, and a mask that changes sign changes where its query
# looks. Here the figures agree within 1e-5.
TOLERANCE = 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_between_picture_and_predictions_is_the_recorded_one(model: str) -> None:
    recorded = MODELS[model]
    overrides = [*recorded["overrides"], "MODEL.DEVICE", "cpu", "MODEL.SWIN.DROP_PATH_RATE", 0.0]
    network = _network(load_config(CONFIGS / recorded["config"], overrides))
    frames = [
        network_input(recorded["image_seed"] + frame, recorded["image_size"], recorded["padded_size"])
        for frame in range(recorded["frames"])
    ]
    tensors = _flat(_outputs(network, torch.cat(frames), len(frames)))
    fingerprints = _flat({stage: recorded[stage] for stage in STAGES if stage in recorded})
    assert set(tensors) == set(fingerprints)
    deviations = {name: deviation(tensors[name], fingerprints[name]) for name in fingerprints}
    assert {name: value for name, value in deviations.items() if value > TOLERANCE} == {}


def _network(cfg: CfgNode) -> nn.ModuleDict:
    # Without the meta-architecture around them, backbone and head have the same names and numbers.
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    network = nn.ModuleDict({"backbone": backbone, "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape())})
    fill_deterministically(network)
    return network


@torch.no_grad()
def _outputs(network: nn.ModuleDict, images: Tensor, num_frames: int) -> dict[str, Any]:
    """What each stage makes, under the names of the record."""
    head = network["sem_seg_head"]
    features = network["backbone"](images)
    mask_features, encoder_features, multi_scale = head.pixel_decoder.forward_features(features)
    outputs = {
        "backbone": features,
        "pixel_decoder": {
            "mask_features": mask_features,
            "transformer_encoder_features": encoder_features,
            "multi_scale": multi_scale,
        },
    }
    if not isinstance(head, MaskFormerHead):
        logits, _ = head.eval()(features)
        return {**outputs, "logits": logits}
    # Training mode gives auxiliary outputs; nothing else depends on it (frozen norms, no dropout).
    predictions = head.train()(features, num_frames)
    return {**outputs, "aux": predictions.pop("aux_outputs"), **predictions}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves (tensors or fingerprints) by dotted path; what a model does not make is left out."""
    if tree is None:
        return {}
    if isinstance(tree, Tensor) or "numel" in tree:
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        path: leaf
        for key, value in items
        for path, leaf in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }
