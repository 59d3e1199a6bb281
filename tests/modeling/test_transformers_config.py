"""The architecture of a config survives the way to transformers and back; what has no counterpart is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from detectron2.data import MetadataCatalog

from mask2former.config import load_config
from mask2former.modeling.transformers_config import (
    class_names,
    config_overrides,
    preprocessor_config,
    to_transformers_config,
)
from tests.golden import CONFIGS
from tests.modeling.transformers_cases import CASES, case_config

R50 = "R50, panoptic"
R18 = "R18, semantic"
SWIN = "Swin-T, instance"

PUBLISHED = [
    ("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", "resnet"),
    ("coco/instance-segmentation/maskformer2_R101_bs16_50ep.yaml", "resnet"),
    ("ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml", "swin"),
    ("coco/panoptic-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml", "swin"),
]


def as_json(cfg, metadata=None):
    return json.loads(json.dumps(to_transformers_config(cfg, metadata)))


def merged(cfg, overrides):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([item for pair in overrides.items() for item in pair])
    return cfg


@pytest.mark.parametrize("case", CASES)
def test_reading_what_was_written_changes_no_key(case):
    cfg = case_config(case)
    assert merged(cfg, config_overrides(as_json(cfg))) == cfg


@pytest.mark.parametrize(("file", "kind"), PUBLISHED)
def test_a_published_config_comes_back_on_top_of_any_other(file, kind):
    config = as_json(load_config(CONFIGS / file))
    assert config["backbone_config"]["model_type"] == kind
    overrides = config_overrides(config)
    other = merged(case_config(SWIN if kind == "resnet" else R50), overrides)
    assert config_overrides(as_json(other)) == overrides


def test_fields_that_are_left_out_have_the_defaults_of_transformers():
    overrides = config_overrides({"model_type": "mask2former"})
    assert overrides["MODEL.BACKBONE.NAME"] == "D2SwinTransformer"
    assert overrides["MODEL.SWIN.DEPTHS"] == [2, 2, 18, 2]
    assert overrides["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"] == 100
    assert overrides["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == 2


def test_losses_and_dropout_stay_as_our_config_has_them():
    config = as_json(case_config(SWIN, MODEL__MASK_FORMER__DICE_WEIGHT=7.0, MODEL__SWIN__DROP_PATH_RATE=0.25))
    assert (config["dice_weight"], config["backbone_config"]["drop_path_rate"]) == (7.0, 0.25)
    assert not any("WEIGHT" in key.removesuffix("_PER_GROUP") or "DROP" in key for key in config_overrides(config))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("", "model_type", "maskformer"),
        ("", "activation_function", "gelu"),
        ("", "encoder_feedforward_dim", 2048),
        ("", "feature_strides", [2, 4, 8, 16]),
        ("", "backbone", "resnet50"),
        ("", "use_timm_backbone", True),
        ("", "num_queries", "many"),
        ("", "id2label", {"0": "sky", "2": "sea"}),
        ("", "id2label", {"sky": 0}),
        ("", "id2label", ["sky"]),
        ("", "backbone_config", "resnet50"),
        ("backbone_config", "model_type", "timm_backbone"),
        ("backbone_config", "out_features", ["stage4"]),
        ("backbone_config", "hidden_act", "relu"),
        ("backbone_config", "patch_size", 2),
        ("backbone_config", "depths", [2, 2, 6]),
        ("backbone_config", "layer_norm_eps", 1e-6),
        ("backbone_config", "use_absolute_embeddings", True),
    ],
)
def test_a_field_that_we_cannot_represent_is_named_with_its_value(part, field, value):
    config = as_json(case_config(SWIN))
    (config[part] if part else config)[field] = value
    with pytest.raises(ValueError) as error:
        config_overrides(config)
    assert field in str(error.value) and repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        (R50, "layer_type", "inverted"),
        (R50, "depths", [3, 3, 3, 3]),
        (R50, "hidden_sizes", [32, 64, 128, 128]),
        (R50, "downsample_in_first_stage", True),
        (R50, "embedding_size", None),
        (R18, "hidden_sizes", [32, 64, 128, 256]),
    ],
)
def test_a_resnet_that_detectron2_does_not_build_is_named(case, field, value):
    config = as_json(case_config(case))
    config["backbone_config"][field] = value
    with pytest.raises(ValueError, match=field):
        config_overrides(config)


def test_a_config_of_something_else_is_refused():
    with pytest.raises(ValueError, match="model_type is missing"):
        config_overrides({"num_queries": 100})


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        (R50, "MODEL.META_ARCHITECTURE", "PanopticFPN"),
        (R50, "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"),
        (R50, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
        (R50, "MODEL.SEM_SEG_HEAD.NORM", "SyncBN"),
        (R50, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4"]),
        (R50, "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", ["res4", "res5"]),
        (R50, "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
        (R50, "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"),
        (R50, "MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone"),
        (R50, "MODEL.BACKBONE.NAME", "TimmBackbone"),
        (R50, "MODEL.RESNETS.NORM", "GN"),
        (R50, "MODEL.RESNETS.NUM_GROUPS", 32),
        (R50, "MODEL.RESNETS.WIDTH_PER_GROUP", 16),
        (R50, "MODEL.RESNETS.RES5_DILATION", 2),
        (R50, "MODEL.RESNETS.DEPTH", 26),
        (SWIN, "MODEL.SWIN.APE", True),
        (SWIN, "MODEL.SWIN.PATCH_NORM", False),
        (SWIN, "MODEL.SWIN.QK_SCALE", 0.5),
        (SWIN, "MODEL.SWIN.PATCH_SIZE", 2),
    ],
)
def test_a_key_that_transformers_cannot_represent_is_named_with_its_value(case, key, value):
    cfg = case_config(case)
    section = cfg
    *parents, last = key.split(".")
    for name in parents:
        section = section[name]
    section[last] = value  # not merged, which refuses another type than that of the default
    with pytest.raises(ValueError) as error:
        to_transformers_config(cfg)
    assert f"{key}={value!r}" in str(error.value)


@pytest.mark.parametrize(
    ("case", "first", "last"),
    [(R50, "person", "rug-merged"), (SWIN, "person", "toothbrush"), (R18, "wall", "flag")],
)
def test_labels_are_the_classes_of_the_data_set_in_the_order_of_the_head(case, first, last):
    cfg = case_config(case)
    config = as_json(cfg, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]))
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert list(config["id2label"]) == [str(index) for index in range(num_classes)]
    assert (config["id2label"]["0"], config["id2label"][str(num_classes - 1)]) == (first, last)
    assert config["label2id"][last] == num_classes - 1


def test_classes_without_names_are_numbered():
    assert class_names(None, 2) == class_names(SimpleNamespace(name="mine"), 2) == ["class_0", "class_1"]


def test_a_data_set_with_other_classes_is_named():
    metadata = SimpleNamespace(name="mine", thing_classes=["cat", "dog"])
    with pytest.raises(ValueError, match=r"'mine' has 0 stuff_classes and 2 thing_classes.*NUM_CLASSES=5"):
        class_names(metadata, 5)


def test_pictures_are_prepared_as_for_our_model():
    config = preprocessor_config(case_config(R50, INPUT__MIN_SIZE_TEST=800, INPUT__MAX_SIZE_TEST=1333))
    assert config["size"] == {"shortest_edge": 800, "longest_edge": 1333}
    assert config["image_mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert config["image_std"] == pytest.approx([0.229, 0.224, 0.225])
    assert (config["size_divisor"], config["resample"], config["do_reduce_labels"]) == (32, 2, False)


@pytest.mark.parametrize(("case", "divisor"), [(SWIN, 32), (R50, 0)])
def test_a_negative_divisor_is_that_of_the_backbone(case, divisor):
    assert preprocessor_config(case_config(case, MODEL__MASK_FORMER__SIZE_DIVISIBILITY=-1))["size_divisor"] == divisor


def test_pictures_keep_their_size_where_ours_do():
    config = preprocessor_config(case_config(R50, INPUT__MIN_SIZE_TEST=0))
    assert not config["do_resize"] and "size" not in config


def test_channels_in_another_order_are_refused():
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT='BGR'"):
        preprocessor_config(case_config(R50, INPUT__FORMAT="BGR"))
