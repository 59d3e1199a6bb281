"""State dicts have the published names and shapes, so that published checkpoints load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from mask2former.config import load_config
from tests.golden import CONFIGS, published_state_dicts

#: 59 published files, and 12 changes of them ("modified:...") for parts that no published file selects.
RECORDED = published_state_dicts()["configs"]
ARCHITECTURES = published_state_dicts()["architectures"]


def _settings(name: str) -> tuple[str, list[Any]]:
    """The file, and what to change in it."""
    if not name.startswith("modified:"):
        return name, []
    note = re.search(r"overrides applied to (?P<file>\S+): (?P<overrides>\[.*\])$", RECORDED[name]["note"])
    assert note is not None, f"the note of {name} does not say how it was made"
    return note["file"], json.loads(note["overrides"])


def build_without_memory(file: str | Path, overrides: list[Any]) -> nn.Module:
    """The model on the "meta" device, where tensors have shapes but no values."""
    cfg = load_config(CONFIGS / file, [*overrides, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("name", RECORDED)
def test_a_model_has_the_published_tensors(name: str) -> None:
    recorded = RECORDED[name]
    architecture = ARCHITECTURES[recorded["architecture"]]
    model = build_without_memory(*_settings(name))
    tensors = model.state_dict()
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == {
        **architecture["tensors"],
        **recorded["overrides"],
    }
    dtypes = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors.items()}
    assert {key: dtype for key, dtype in dtypes.items() if dtype != "float32"} == architecture["non_float32"]
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded["num_parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == recorded["num_trainable"]


def test_every_recorded_architecture_is_built() -> None:
    assert {recorded["architecture"] for recorded in RECORDED.values()} == set(ARCHITECTURES)
    assert len(ARCHITECTURES) == 20


@pytest.mark.parametrize(
    ("file", "recorded"),
    [
        ("ade20k-150/maskformer_R50_bs16_160k.yaml", "modified:maskformer_R50_ade20k150"),
        ("ade20k-150/per_pixel_baseline_R50_bs16_160k.yaml", "modified:per_pixel_baseline_R50"),
        ("ade20k-150/per_pixel_baseline_plus_R50_bs16_160k.yaml", "modified:per_pixel_baseline_plus_R50"),
        ("coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml", "modified:maskformer_panoptic_R50"),
    ],
)
def test_the_recipes_of_maskformer_build_its_models(file: str, recorded: str) -> None:
    shapes = {key: list(tensor.shape) for key, tensor in build_without_memory(file, []).state_dict().items()}
    assert shapes == ARCHITECTURES[RECORDED[recorded]["architecture"]]["tensors"]
