"""Configuration keys: loading, overriding and refusing."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config
from mask2former.config import load_config, on_available_device


def test_keys_can_be_added_to_plain_detectron2_defaults() -> None:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    assert cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS == 12544
    assert cfg.INPUT.SAMPLING_FRAME_NUM == 2


def test_a_file_overrides_defaults_and_arguments_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("MODEL:\n  MASK_FORMER:\n    NHEADS: 4\n    DROPOUT: 0.0\n")
    (tmp_path / "task.yaml").write_text("_BASE_: base.yaml\nMODEL:\n  MASK_FORMER:\n    NHEADS: 2\n")
    cfg = load_config(tmp_path / "task.yaml", ["SOLVER.MAX_ITER", "7"])
    assert (cfg.MODEL.MASK_FORMER.NHEADS, cfg.MODEL.MASK_FORMER.DROPOUT, cfg.SOLVER.MAX_ITER) == (2, 0.0, 7)
    assert cfg.is_frozen()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("MODEL:\n  MASK_FORMER:\n    NHEAD: 4\n")
    with pytest.raises(KeyError, match=r"task\.yaml.*MODEL\.MASK_FORMER\.NHEAD"):
        load_config(tmp_path / "task.yaml")


@pytest.mark.parametrize("overrides", [["SOLVER.MAXITER", "3"], ["SOLVER.MAXITER"]])
def test_a_wrong_override_is_named(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "task.yaml").write_text("SEED: 1\n")
    with pytest.raises(KeyError, match=r"overrides \(KEY VALUE \.\.\.\): .*SOLVER\.MAXITER"):
        load_config(tmp_path / "task.yaml", overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("SOLVER: {MAX_ITER: soon}", "Type mismatch.*SOLVER.MAX_ITER"),
        ("MODEL: {WEIGHTS: [1,", "expected"),
        ("just a text", "not a YAML mapping"),
        ("", "not a YAML mapping"),
        ("_BASE_: absent.yaml", "its _BASE_ cannot be read: .*absent.yaml"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "task.yaml").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s)config file '.*task\.yaml'.*{message}"):
        load_config(tmp_path / "task.yaml")


def test_executable_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("SOLVER:\n  MAX_ITER: !!python/object/apply:eval ['1+1']\n")
    with pytest.raises(ValueError, match="(?s)python/object.*write the values out"):
        load_config(tmp_path / "task.yaml")


def test_the_cpu_stands_in_for_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "task.yaml").write_text("SOLVER:\n  MAX_ITER: 1\n")
    cfg = load_config(tmp_path / "task.yaml", ["MODEL.DEVICE", "cuda:1"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (on_available_device(cfg).MODEL.DEVICE, cfg.MODEL.DEVICE) == ("cpu", "cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert on_available_device(cfg).MODEL.DEVICE == "cuda:1"
