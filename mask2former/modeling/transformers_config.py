"""The configs that transformers keeps beside the weights of a Mask2Former, in the words of our config and back.

They are plain JSON, so that none of this needs transformers. What the other side cannot represent is an error that
names the field or the key, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from .transformers_backbones import backbone_config, backbone_overrides
from .transformers_fields import Section, check_fields

__all__ = ["class_names", "config_overrides", "preprocessor_config", "to_transformers_config"]

_PREFIX = "transformers config: "
_MODEL = Section(
    prefix=_PREFIX,
    shared=(
        ("feature_size", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 256),
        ("mask_feature_size", "MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
        ("encoder_layers", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 6),
        ("common_stride", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 4),
        ("hidden_dim", "MODEL.MASK_FORMER.HIDDEN_DIM", 256),
        ("dim_feedforward", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 2048),
        ("decoder_layers", "MODEL.MASK_FORMER.DEC_LAYERS", 10),
        ("num_attention_heads", "MODEL.MASK_FORMER.NHEADS", 8),
        ("num_queries", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100),
        ("pre_norm", "MODEL.MASK_FORMER.PRE_NORM", False),
        ("enforce_input_projection", "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", False),
    ),
    written=(
        ("class_weight", "MODEL.MASK_FORMER.CLASS_WEIGHT"),
        ("mask_weight", "MODEL.MASK_FORMER.MASK_WEIGHT"),
        ("dice_weight", "MODEL.MASK_FORMER.DICE_WEIGHT"),
        ("no_object_weight", "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT"),
        ("train_num_points", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS"),
        ("oversample_ratio", "MODEL.MASK_FORMER.OVERSAMPLE_RATIO"),
        ("importance_sample_ratio", "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO"),
        ("use_auxiliary_loss", "MODEL.MASK_FORMER.DEEP_SUPERVISION"),
        ("dropout", "MODEL.MASK_FORMER.DROPOUT"),
        ("ignore_value", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"),
    ),
    theirs={
        "model_type": "mask2former",
        "activation_function": "relu",
        "encoder_feedforward_dim": 1024,
        "feature_strides": [4, 8, 16, 32],
    },
    ours={
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    },
)
#: Fields of transformers 4.x that take the backbone from another library.
_FOREIGN_BACKBONE = {"backbone": None, "use_timm_backbone": False}
#: What transformers takes for a `backbone_config` that is left out.
_DEFAULT_BACKBONE = {
    "model_type": "swin",
    "depths": [2, 2, 18, 2],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


def config_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture that a `config.json` of transformers describes, as our keys and values.

    A field that is left out has transformers' default. What matters in training only (dropout, weights of losses) stays
    as our config has it.

    Raises:
        ValueError: we have no such model; the message names the field and its value.
    """
    if "model_type" not in config:
        raise ValueError(f"{_PREFIX}model_type is missing, so this is no config of a Mask2Former")
    check_fields(config, _FOREIGN_BACKBONE, _PREFIX)
    return {
        **_MODEL.read(config),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _num_classes(config),
        **backbone_overrides(config.get("backbone_config") or _DEFAULT_BACKBONE),
    }


def to_transformers_config(cfg: CfgNode, metadata: Any = None) -> dict[str, Any]:
    """The content of `config.json` for the model of a config.

    Args:
        cfg: of a `MaskFormer` with masked decoder, deformable pixel decoder and a Swin or ResNet backbone.
        metadata: of the data set it was trained on, for the names of classes, see `class_names`.

    Raises:
        ValueError: transformers has no such model; the message names the config key.
    """
    names = class_names(metadata, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    return {
        **_MODEL.write(cfg),
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": backbone_config(cfg),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def preprocessor_config(cfg: CfgNode) -> dict[str, Any]:
    """The content of `preprocessor_config.json`: how transformers' image processor prepares pictures for the model.

    One thing it does otherwise: it resizes both sides up to a multiple of `size_divisor`, where our model pads.

    Raises:
        ValueError: the image processor cannot prepare pictures so; the message names the config key.
    """
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(f"INPUT.FORMAT={cfg.INPUT.FORMAT!r}: transformers' image processor gives only 'RGB'")
    divisor = cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
    if divisor < 0:  # the backbone's own value
        divisor = 32 if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer" else 0
    size = {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST}
    is_resized = cfg.INPUT.MIN_SIZE_TEST > 0
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": is_resized,
        **({"size": size} if is_resized else {}),
        "size_divisor": divisor,
        "resample": 2,  # PIL's number of bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
    }


def class_names(metadata: Any, num_classes: int) -> list[str]:
    """Names of classes in the order of the class head; "class_0", ... where the metadata (or None) has none.

    Raises:
        ValueError: the metadata names another number of classes.
    """
    # Where both are there, `stuff_classes` has every class and `thing_classes` only the things.
    lists = {key: list(getattr(metadata, key, ())) for key in ("stuff_classes", "thing_classes")}
    for names in lists.values():
        if len(names) == num_classes:
            return names
    if any(lists.values()):
        counts = " and ".join(f"{len(names)} {key}" for key, names in lists.items())
        raise ValueError(
            f"the data set {metadata.name!r} has {counts}, but MODEL.SEM_SEG_HEAD.NUM_CLASSES={num_classes}: name the "
            "data set that the model was trained on in DATASETS.TRAIN"
        )
    return [f"class_{index}" for index in range(num_classes)]


def _num_classes(config: Mapping[str, Any]) -> int:
    """Their rule: as many as `id2label` names, else `num_labels`, else 2."""
    if (labels := config.get("id2label")) is None:
        num_labels = config.get("num_labels", 2)
        if type(num_labels) is not int:
            raise ValueError(f"{_PREFIX}num_labels={num_labels!r} must be a number")
        return num_labels
    if not isinstance(labels, Mapping) or set(map(str, labels)) != set(map(str, range(len(labels)))):
        raise ValueError(f"{_PREFIX}id2label={labels!r} must number its classes from 0 without gaps")
    return len(labels)
