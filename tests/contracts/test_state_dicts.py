"""State dicts have the published names and shapes, so that published checkpoints load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from mask2former.config import load_config
from tests.golden import CONFIGS, published_state_dicts

R50_COCO = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
R50_ADE20K = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
SWIN_TINY = "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml"

DEEPLAB_R103 = {
    "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],
    "MODEL.RESNETS.NORM": "SyncBN",
}
SWIN_LARGE = {
    "MODEL.SWIN.EMBED_DIM": 192,
    "MODEL.SWIN.DEPTHS": [2, 2, 18, 2],
    "MODEL.SWIN.NUM_HEADS": [6, 12, 24, 48],
    "MODEL.SWIN.WINDOW_SIZE": 12,
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 384,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 200,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 100,
}
SWIN_BASE = {
    "MODEL.SWIN.EMBED_DIM": 128,
    "MODEL.SWIN.DEPTHS": [2, 2, 18, 2],
    "MODEL.SWIN.NUM_HEADS": [4, 8, 16, 32],
    "MODEL.SWIN.WINDOW_SIZE": 12,
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 384,
}
ALL_LEVELS = ["res2", "res3", "res4", "res5"]

#: Published architecture -> how to get there from a file of ours.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mask2former_R50_FrozenBN": (R50_COCO, {}),
    "mask2former_R50_SyncBN": (R50_ADE20K, {"MODEL.RESNETS.NORM": "SyncBN", "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 8}),
    "mask2former_R101_FrozenBN": (R50_COCO, {"MODEL.RESNETS.DEPTH": 101, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 80}),
    "mask2former_R101_SyncBN": (R50_ADE20K, {"MODEL.RESNETS.DEPTH": 101, "MODEL.RESNETS.NORM": "SyncBN"}),
    "mask2former_R103_SyncBN": (R50_ADE20K, DEEPLAB_R103),
    "mask2former_swinT": (SWIN_TINY, {}),
    "mask2former_swinS": (SWIN_TINY, {"MODEL.SWIN.DEPTHS": [2, 2, 18, 2]}),
    "mask2former_swinB_w12": (SWIN_TINY, SWIN_BASE),
    "mask2former_swinL_w12": (SWIN_TINY, SWIN_LARGE),
    "mask2former_swinT_APE": (SWIN_TINY, {"MODEL.SWIN.APE": True}),
    "mask2former_R50_enforce_input_proj": (R50_ADE20K, {"MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": True}),
    "mask2former_R50_4level_encoder": (
        R50_ADE20K,
        {"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ALL_LEVELS},
    ),
    "mask2former_R50_nonorm": (R50_ADE20K, {"MODEL.SEM_SEG_HEAD.NORM": ""}),
}
OUR_FILES = sorted(name for name in published_state_dicts()["configs"] if (CONFIGS / name).is_file())


def build_without_memory(file: str | Path, overrides: dict[str, Any]) -> nn.Module:
    """The model on the "meta" device, where tensors have shapes but no values."""
    items = [item for pair in overrides.items() for item in pair]
    cfg = load_config(CONFIGS / file, [*items, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        return build_model(cfg)


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_has_the_published_names_and_shapes(architecture: str) -> None:
    model = build_without_memory(*ARCHITECTURES[architecture])
    published = published_state_dicts()["architectures"][architecture]
    assert shapes(model) == published["tensors"]
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in model.state_dict().items()}
    other_types = {name: dtype for name, dtype in dtypes.items() if dtype != "float32"}
    assert other_types == published["non_float32"]


@pytest.mark.parametrize("file", OUR_FILES)
def test_a_config_file_builds_the_published_model(file: str) -> None:
    published = published_state_dicts()["configs"][file]
    expected = {**published_state_dicts()["architectures"][published["architecture"]]["tensors"]}
    expected.update(published["overrides"])
    model = build_without_memory(file, {})
    assert shapes(model) == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == published["num_parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == published["num_trainable"]


def test_the_config_files_of_the_first_release_are_among_the_published_ones() -> None:
    assert {R50_COCO, R50_COCO.replace("panoptic", "instance"), SWIN_TINY} <= set(OUR_FILES)
