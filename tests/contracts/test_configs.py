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
PUBLISHED = [path for path in COMPLETE if "digits" not in path.parts]
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


def test_the_recipes_of_the_first_release_are_there():
    assert {
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
        "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
        "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml",
    } <= {_name(path) for path in PUBLISHED}


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_file_is_plain_yaml(path):
    # safe_load refuses executable tags.
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("path", [path for path in COMPLETE if not path.name.startswith("Base-")], ids=_name)
def test_a_task_file_states_only_differences(path):
    assert len(path.read_text().splitlines()) <= 15


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_digits_have_a_config_for_each_task(task):
    cfg = load_config(CONFIGS / "digits" / f"{task}.yaml")
    assert cfg.DATASETS.TRAIN == (f"digits_{task}_train",)
    assert cfg.DATASETS.TEST == (f"digits_{task}_val",)
    assert cfg.INPUT.RANDOM_FLIP == "none", "a mirrored digit is no digit"
