"""`backbone_config` of transformers' Mask2Former: Swin (arXiv:2103.14030) and ResNet (arXiv:1512.03385), both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from .transformers_fields import Section

__all__ = ["backbone_config", "backbone_overrides"]

_PREFIX = "transformers config: backbone_config."
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_MAPS = ["res2", "res3", "res4", "res5"]

_SWIN = Section(
    prefix=_PREFIX,
    shared=(
        ("embed_dim", "MODEL.SWIN.EMBED_DIM", 96),
        ("depths", "MODEL.SWIN.DEPTHS", [2, 2, 6, 2]),
        ("num_heads", "MODEL.SWIN.NUM_HEADS", [3, 6, 12, 24]),
        ("window_size", "MODEL.SWIN.WINDOW_SIZE", 7),
        ("mlp_ratio", "MODEL.SWIN.MLP_RATIO", 4.0),
        ("qkv_bias", "MODEL.SWIN.QKV_BIAS", True),
    ),
    written=(
        ("image_size", "MODEL.SWIN.PRETRAIN_IMG_SIZE"),
        ("drop_path_rate", "MODEL.SWIN.DROP_PATH_RATE"),
        ("hidden_dropout_prob", "MODEL.SWIN.DROP_RATE"),
        ("attention_probs_dropout_prob", "MODEL.SWIN.ATTN_DROP_RATE"),
    ),
    theirs={
        "model_type": "swin",
        "patch_size": 4,
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_absolute_embeddings": False,  # theirs serves pictures of one size only, ours is resized to the picture
    },
    ours={
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.PATCH_SIZE": 4,
        "MODEL.SWIN.QK_SCALE": None,
        "MODEL.SWIN.APE": False,
        "MODEL.SWIN.PATCH_NORM": True,
        "MODEL.SWIN.OUT_FEATURES": _MAPS,
    },
)
_RESNET = Section(
    prefix=_PREFIX,
    shared=(
        ("embedding_size", "MODEL.RESNETS.STEM_OUT_CHANNELS", 64),
        ("downsample_in_bottleneck", "MODEL.RESNETS.STRIDE_IN_1X1", False),
    ),
    theirs={"model_type": "resnet", "num_channels": 3, "hidden_act": "relu", "downsample_in_first_stage": False},
    ours={
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.NUM_GROUPS": 1,
        "MODEL.RESNETS.RES5_DILATION": 1,
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
        "MODEL.RESNETS.OUT_FEATURES": _MAPS,
    },
)
#: MODEL.RESNETS.DEPTH -> kind of layer, layers per stage.
_RESNET_DEPTHS = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}
_BASIC_WIDTH = 64  # of the first stage of basic layers: Detectron2 builds no other
#: Norms of MODEL.RESNETS.NORM that compute the same in evaluation as transformers' batch norm.
_BATCH_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN")


def backbone_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our keys and values for a `backbone_config`.

    Raises:
        ValueError: we have no such backbone; the message names the field and its value.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{_PREFIX.removesuffix('.')}={config!r} must be an object with a model_type")
    readers = {"swin": _SWIN.read, "resnet": _resnet_overrides}
    if (kind := config.get("model_type")) not in readers:
        raise ValueError(f"{_PREFIX}model_type={kind!r} cannot be represented here, only {' and '.join(readers)} can")
    stages = config.get("out_features") or [f"stage{index}" for index in config.get("out_indices") or ()]
    if stages != _STAGES:
        raise ValueError(f"{_PREFIX}out_features={stages} cannot be represented here, only {_STAGES} can")
    return readers[kind](config)


def backbone_config(cfg: CfgNode) -> dict[str, Any]:
    """The `backbone_config` for a config of ours.

    Raises:
        ValueError: transformers has no such backbone; the message names the config key.
    """
    writers = {"D2SwinTransformer": _SWIN.write, "build_resnet_backbone": _resnet_config}
    if (name := cfg.MODEL.BACKBONE.NAME) not in writers:
        raise ValueError(
            f"MODEL.BACKBONE.NAME={name!r} has no counterpart in transformers' Mask2Former, only "
            f"{' and '.join(writers)} have"
        )
    return {**writers[name](cfg), "out_features": _STAGES}


def _resnet_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    layers = (config.get("layer_type", "bottleneck"), config.get("depths", [3, 4, 6, 3]))
    depth = next((depth for depth, known in _RESNET_DEPTHS.items() if known == layers), None)
    if depth is None:
        raise ValueError(
            f"{_PREFIX}layer_type={layers[0]!r} with depths={layers[1]} is none of the ResNets that Detectron2 builds: "
            f"{', '.join(map(str, _RESNET_DEPTHS))}"
        )
    widths = config.get("hidden_sizes", [256, 512, 1024, 2048])
    width = _BASIC_WIDTH if layers[0] == "basic" else widths[0]
    if widths != _widths(width):
        raise ValueError(f"{_PREFIX}hidden_sizes={widths} cannot be represented here, only {_widths(width)} can")
    overrides = {
        **_RESNET.read(config),
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": width,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width // 4,
    }
    if layers[0] == "basic":  # to which both keys mean nothing
        del overrides["MODEL.RESNETS.WIDTH_PER_GROUP"], overrides["MODEL.RESNETS.STRIDE_IN_1X1"]
    return overrides


def _resnet_config(cfg: CfgNode) -> dict[str, Any]:
    resnet = cfg.MODEL.RESNETS
    if resnet.NORM not in _BATCH_NORMS:
        raise ValueError(
            f"MODEL.RESNETS.NORM={resnet.NORM!r} has no counterpart in transformers' Mask2Former, only "
            f"{', '.join(_BATCH_NORMS)} have"
        )
    if resnet.DEPTH not in _RESNET_DEPTHS:
        known = ", ".join(map(str, _RESNET_DEPTHS))
        raise ValueError(f"MODEL.RESNETS.DEPTH={resnet.DEPTH} is unknown; choose from: {known}")
    layer_type, depths = _RESNET_DEPTHS[resnet.DEPTH]
    width, inner_width = resnet.RES2_OUT_CHANNELS, resnet.WIDTH_PER_GROUP
    if layer_type == "bottleneck" and 4 * inner_width != width:
        raise ValueError(
            f"MODEL.RESNETS.WIDTH_PER_GROUP={inner_width} has no counterpart in transformers' Mask2Former, only "
            f"{width // 4} has, a quarter of MODEL.RESNETS.RES2_OUT_CHANNELS"
        )
    return {
        **_RESNET.write(cfg),
        "layer_type": layer_type,
        "depths": depths,
        "hidden_sizes": _widths(width),
    }


def _widths(first: int) -> list[int]:
    return [first * 2**stage for stage in range(len(_STAGES))]
