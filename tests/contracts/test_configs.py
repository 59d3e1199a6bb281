"""Every published YAML file resolves to the values it had in the original, from plain YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask2former.config import add_maskformer2_config, load_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
COMPLETE = [path for path in FILES if "_base_" not in path.parts]
#: Files beyond the 71: the embedded dataset, MaskFormer's recipes and other backbones.
OURS = {"digits", "ade20k-150", "coco-panoptic", "timm"}
PUBLISHED = [path for path in COMPLETE if not OURS & set(path.parts)]
#: Keys that the original did not have; a published file must leave them at their defaults.
EXPECTED: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/data/configs.json").read_text())


def _name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def _flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    return _flat(cfg)


@pytest.mark.parametrize("path", PUBLISHED, ids=_name)
def test_a_published_file_differs_from_the_defaults_in_the_published_values(path, defaults):
    resolved = _flat(load_config(path))
    changed = {key: value for key, value in resolved.items() if value != defaults[key]}
    assert changed == EXPECTED[_name(path)]


def test_all_published_files_are_there():
    assert len(EXPECTED) == 71
    assert {_name(path) for path in PUBLISHED} == set(EXPECTED)


def test_maskformer_is_trained_by_its_published_recipe():
    semantic = load_config(CONFIGS / "ade20k-150/maskformer_R50_bs16_160k.yaml")
    panoptic = load_config(CONFIGS / "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml")
    for cfg in (semantic, panoptic):
        node = cfg.MODEL.MASK_FORMER
        assert (node.MASK_WEIGHT, node.DICE_WEIGHT, node.CLASS_WEIGHT) == (20.0, 1.0, 1.0)
        assert (node.NUM_OBJECT_QUERIES, node.DEC_LAYERS, node.ENC_LAYERS, node.DROPOUT) == (100, 6, 0, 0.1)
        assert node.TRANSFORMER_DECODER_NAME == "StandardTransformerDecoder"
    assert semantic.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME == "BasePixelDecoder"
    assert semantic.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE == "res5"
    assert panoptic.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME == "TransformerEncoderPixelDecoder"
    assert panoptic.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS == 6
    assert panoptic.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE == "transformer_encoder"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_file_is_plain_yaml(path):
    # safe_load refuses executable tags.
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("path", [path for path in COMPLETE if not path.name.startswith("Base-")], ids=_name)
def test_a_task_file_states_only_differences(path):
    assert len(path.read_text().splitlines()) <= 15


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic", "video"])
def test_the_digits_have_a_config_for_each_task(task):
    cfg = load_config(CONFIGS / "digits" / f"{task}.yaml")
    assert cfg.DATASETS.TRAIN == (f"digits_{task}_train",)
    assert cfg.DATASETS.TEST == (f"digits_{task}_val",)
    assert cfg.INPUT.RANDOM_FLIP == "none", "a mirrored digit is no digit"
