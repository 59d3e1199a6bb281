"""The conversion scripts take their published arguments, write, and fail with one line."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import torchvision

from mask2former.modeling.weight_files import read_weight_file

TOOLS = Path(__file__).resolve().parents[2] / "tools"
DIGITS = str(TOOLS.parent / "configs/digits/panoptic.yaml")


def _run(script, *arguments):
    runpy.run_path(str(TOOLS / script))["main"]([str(argument) for argument in arguments])


def test_torchvisions_resnet_prints_every_new_name(tmp_path, capsys):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "in.pth")
    _run("convert-torchvision-to-d2.py", tmp_path / "in.pth", tmp_path / "R-18.pkl")
    printed = capsys.readouterr().out.splitlines()
    assert "layer1.0.bn1.bias -> res2.0.conv1.norm.bias" in printed
    assert printed[-1] == f"{tmp_path / 'R-18.pkl'}: {len(printed) - 1} tensors; the classifier is left out"
    assert len(read_weight_file(tmp_path / "R-18.pkl").tensors) == len(printed) - 1


def test_a_checkpoint_becomes_half_precision_safetensors(tmp_path, capsys):
    torch.save({"model": {"backbone.weight": torch.ones(3)}, "iteration": 4}, tmp_path / "in.pth")
    _run("convert_checkpoint.py", tmp_path / "in.pth", tmp_path / "out.safetensors", "--dtype", "float16")
    assert capsys.readouterr().out == f"{tmp_path / 'out.safetensors'}: 1 tensors\n"
    assert read_weight_file(tmp_path / "out.safetensors").tensors["backbone.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("convert_checkpoint.py", ["nowhere.pth", "out.pkl"], "error: checkpoint 'nowhere.pth' does not exist"),
        ("convert_checkpoint.py", ["in.pth", "out.pkl", "--config-file", "no.yaml"], "error: config file 'no.yaml'"),
        (
            "convert_checkpoint.py",
            ["in.pth", "out.pkl", "--config-file", DIGITS, "--opts", "NO.KEY", "1"],
            "error: .*NO.KEY",
        ),
        ("convert-torchvision-to-d2.py", ["nowhere.pth", "out.pkl"], "error: checkpoint 'nowhere.pth' does not exist"),
        (
            "convert-pretrained-swin-model-to-d2.py",
            ["nowhere.pth", "o.pkl"],
            "error: checkpoint 'nowhere.pth' does not",
        ),
    ],
)
def test_errors_are_one_line(script, arguments, message):
    with pytest.raises(SystemExit, match=rf"{script}: {message}"):
        _run(script, *arguments)


def test_overrides_without_a_config_are_refused(capsys):
    with pytest.raises(SystemExit):
        _run("convert_checkpoint.py", "in.pth", "out.pkl", "--opts", "MODEL.DEVICE", "cpu")
    assert "--opts without --config-file has no effect" in capsys.readouterr().err


def test_swin_prints_what_it_wrote(tmp_path, capsys):
    names = ["patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight", "layers.0.downsample.reduction.weight"]
    torch.save({"model": dict.fromkeys(names, torch.ones(1))}, tmp_path / "in.pth")
    _run("convert-pretrained-swin-model-to-d2.py", tmp_path / "in.pth", tmp_path / "out.pkl")
    assert capsys.readouterr().out == f"{tmp_path / 'out.pkl'}: 3 tensors\n"


@pytest.mark.parametrize("script", ["convert-torchvision-to-d2.py", "convert_checkpoint.py"])
def test_an_output_that_exists_is_replaced_with_a_flag(tmp_path, script):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "in.pth")
    (tmp_path / "out.pkl").write_bytes(b"old")
    with pytest.raises(SystemExit, match="exists already: add --overwrite"):
        _run(script, tmp_path / "in.pth", tmp_path / "out.pkl")
    _run(script, tmp_path / "in.pth", tmp_path / "out.pkl", "--overwrite")
    assert read_weight_file(tmp_path / "out.pkl").tensors
