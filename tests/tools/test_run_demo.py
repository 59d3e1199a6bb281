"""tools/run_demo.py from data to fine-tuning, with few scenes, few steps and an untrained checkpoint."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.config import load_config
from mask2former.modeling.weight_writing import write_weights

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/digits/panoptic.yaml"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("run_demo", ROOT / "tools" / "run_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, monkeypatch, tmp_path):
    """Runs the script in a folder of its own and puts the loggers back as they were."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(script, "CALIBRATION_STEPS", 5)
    small = ["--train", "4", "--val", "2", "--strips", "2", "--output", str(tmp_path / "out")]
    overrides = ["--opts", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    loggers = [logging.getLogger(name) for name in ("mask2former", "detectron2", "fvcore")]
    states = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield lambda *arguments: script.main([*small, *(str(argument) for argument in arguments), *overrides])
    for logger, (handlers, level, propagate) in zip(loggers, states, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    write_weights(build_model(load_config(CONFIG, ["MODEL.DEVICE", "cpu"])).state_dict(), path)
    return path


def test_a_run_prepares_evaluates_draws_and_trains(run, weights, tmp_path, capsys):
    assert run("--weights", weights, "--seconds", "0.1") == 0
    folder = tmp_path / "out" / "run_1"
    assert len(list((folder / "strips").glob("*.png"))) == 2
    results = json.loads((folder / "evaluation" / "inference" / "metrics.json").read_text())["digits_panoptic_val"]
    assert (
        {"PQ", "SQ", "RQ"} <= set(results["panoptic_seg"]) and "AP" in results["segm"] and "mIoU" in results["sem_seg"]
    )
    assert (folder / "fine_tuning" / "model_final.pth").is_file()
    printed = capsys.readouterr().out
    for text in ("PQ", "mask AP", "mIoU", "before", "after", "loss", str(folder / "strips"), "metrics.json"):
        assert text in printed
    assert len(printed.splitlines()) < 60


def test_a_second_run_leaves_the_first_alone(run, weights, tmp_path, capsys):
    for _ in range(2):
        assert run("--weights", weights, "--seconds", "0") == 0
    assert "is there already" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run_1", "run_2"]
    assert not (tmp_path / "out" / "run_2" / "fine_tuning").exists()


def test_missing_weights_are_named(run, tmp_path, capsys):
    assert run("--weights", tmp_path / "nothing.safetensors") == 1
    assert "nothing.safetensors" in capsys.readouterr().err
