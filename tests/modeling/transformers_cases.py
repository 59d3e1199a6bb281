"""Small models with the layers of published ones, one for each task and kind of backbone, and their configs."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from mask2former import MaskFormer
from tests.tiny_model import tiny_config

RESNET = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
}
SWIN_T = {
    "MODEL.SWIN.EMBED_DIM": 12,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 3, 4],
    "MODEL.SWIN.WINDOW_SIZE": 7,
}
#: Name -> data set and what differs from `tiny_config`.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "R50, panoptic": (
        "coco_2017_train_panoptic",
        {
            **RESNET,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133,
            "MODEL.RESNETS.DEPTH": 50,
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        },
    ),
    "R18, semantic": (
        "ade20k_sem_seg_train",
        {
            **RESNET,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 150,
            "MODEL.RESNETS.DEPTH": 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.RESNETS.NORM": "BN",
        },
    ),
    "Swin-T, instance": ("coco_2017_train", {**SWIN_T, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 80}),
    "Swin-T with every option": (
        "tiny_model_train",
        {
            **SWIN_T,
            "MODEL.SWIN.QKV_BIAS": False,
            "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8,
            "MODEL.MASK_FORMER.PRE_NORM": True,
            "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
            "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": True,
        },
    ),
}


def case_config(name: str, **overrides: Any) -> CfgNode:
    """The config of a case, for pictures that are resized to 64 pixels; `overrides` spell "." as "__"."""
    dataset, settings = CASES[name]
    settings = {"INPUT.FORMAT": "RGB", "INPUT.MIN_SIZE_TEST": 64, "DATASETS.TRAIN": (dataset,), **settings}
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    return tiny_config(*(item for pair in settings.items() for item in pair))


def case_model(cfg: CfgNode) -> MaskFormer:
    """Random weights (seed 0), in evaluation mode."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    randomize(model)
    return model


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Leave no norm, bias or attention at a neutral start, so that each of them shows in the result."""
    neutral_matrices = ("sampling_offsets.weight", "attention_weights.weight", "relative_position_bias_table")
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked") or name == "criterion.empty_weight":
            continue
        elif tensor.dim() == 1 or name.endswith(neutral_matrices):
            tensor.add_(0.1 * torch.randn_like(tensor))
