"""Pre-training on single digits: repeatable, and its file is what MODEL.WEIGHTS takes."""

import runpy

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.engine.pretraining import PretrainingSettings, pretrain_backbone
from mask2former.modeling.checkpoint import MaskFormerCheckpointer, load_weights
from mask2former.modeling.weight_files import read_weight_file
from tests.engine.tiny import CONFIGS, arguments, tiny_config

SETTINGS = PretrainingSettings(num_steps=3, batch_size=4, crop_size=32, num_workers=0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file written by three steps of pre-training."""
    folder = tmp_path_factory.mktemp("pretraining")
    accuracy = pretrain_backbone(tiny_config(folder / "run"), folder / "backbone.pth", SETTINGS)
    assert 0.0 <= accuracy <= 1.0
    return folder / "backbone.pth"


def test_the_whole_backbone_is_loaded_and_nothing_else(weights, tmp_path) -> None:
    model = build_model(tiny_config(tmp_path / "run"))
    report = load_weights(model, read_weight_file(weights))
    assert sorted(report.loaded) == sorted(name for name in model.state_dict() if name.startswith("backbone."))
    assert not report.unused


def test_frozen_normalization_gets_the_learned_statistics(weights, tmp_path) -> None:
    model = build_model(tiny_config(tmp_path / "run"))
    MaskFormerCheckpointer(model).load(str(weights))
    norm = model.backbone.stem.conv1.norm
    assert type(norm).__name__ == "FrozenBatchNorm2d"
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


def test_the_same_seed_gives_the_same_weights_with_any_number_of_workers(weights, tmp_path) -> None:
    settings = PretrainingSettings(num_steps=3, batch_size=4, crop_size=32, num_workers=1)
    pretrain_backbone(tiny_config(tmp_path / "run"), tmp_path / "again.pth", settings)
    first, second = (read_weight_file(path).tensors for path in (weights, tmp_path / "again.pth"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "crop_size"])
def test_impossible_settings_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        PretrainingSettings(**{name: 0})


def test_a_loss_that_explodes_stops_with_a_hint_and_writes_nothing(tmp_path) -> None:
    settings = PretrainingSettings(num_steps=3, batch_size=4, crop_size=32, num_workers=0, learning_rate=float("inf"))
    with pytest.raises(ValueError, match="lower the learning rate"):
        pretrain_backbone(tiny_config(tmp_path / "run"), tmp_path / "backbone.pth", settings)
    assert not (tmp_path / "backbone.pth").exists()


def test_the_script_writes_the_file_and_says_how_good_it_is(tmp_path, capsys) -> None:
    script = runpy.run_path("tools/pretrain_digits_backbone.py")
    options = {"--steps": 1, "--batch-size": 2, "--crop-size": 32, "--workers": 0, "--output": tmp_path / "b.pth"}
    config = ["--config-file", str(CONFIGS / "digits" / "panoptic.yaml")]
    given = [str(part) for pair in options.items() for part in pair]
    script["main"]([*config, *given, *arguments(tmp_path / "run")])
    assert "of unseen crops are classified correctly" in capsys.readouterr().out
    assert (tmp_path / "b.pth").is_file()
