"""Files of every kind are read for what they are; broken and foreign ones are refused by name."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mask2former.modeling.weight_files import read_weight_file
from mask2former.modeling.weight_writing import write_weights
from tests.golden import CONFIGS

TENSORS = {"backbone.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), "count": torch.tensor(4)}


def _save_pth(path):
    torch.save({"model": TENSORS, "iteration": 3}, path)


def _save_plain_pth(path):
    torch.save(TENSORS, path)


def _save_lightning(path):
    torch.save({"state_dict": TENSORS, "epoch": 3}, path)


def _save_pkl(path):
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))


def _save_pkl_of_tensors(path):
    path.write_bytes(pickle.dumps({"model": TENSORS, "__author__": "third_party", "matching_heuristics": True}))


def _save_safetensors(path):
    save_file(TENSORS, path)


FORMATS = {
    "a.pth": _save_pth,
    "plain.pth": _save_plain_pth,
    "lightning.ckpt": _save_lightning,
    "a.pkl": _save_pkl,
    "tensors.pkl": _save_pkl_of_tensors,
    "a.safetensors": _save_safetensors,
    "a_pickle.pth": _save_pkl,
    "of_torch.pkl": _save_pth,
    "safetensors.bin": _save_safetensors,
}


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_of_every_format_are_read_whatever_the_file_is_called(tmp_path, name):
    FORMATS[name](tmp_path / name)
    read = read_weight_file(tmp_path / name)
    assert read.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(read.tensors[key], tensor) for key, tensor in TENSORS.items())


def test_what_else_a_checkpoint_holds_is_kept_apart(tmp_path):
    _save_pth(tmp_path / "a.pth")
    assert read_weight_file(tmp_path / "a.pth").other == {"iteration": 3}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    FORMATS[name](path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name}' \(\d+ bytes\) cannot be read: it is cut off"):
        read_weight_file(path)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello\nworld\n", b"<html>404</html>", b"0123456789" * 9, b"]q\x00(c"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' \(\d+ bytes\) cannot be read"):
        read_weight_file(tmp_path / name)


def test_a_missing_file_is_refused_with_the_config_key():
    with pytest.raises(FileNotFoundError, match=r"'nowhere.pth' does not exist \(MODEL.WEIGHTS"):
        read_weight_file("nowhere.pth")


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("R-101.pkl", "tools/convert-torchvision-to-d2.py"),
        ("swin_tiny_patch4_window7_224.pkl", "tools/convert-pretrained-swin-model-to-d2.py"),
        ("model_final_3c8ec9.pkl", "docs/model_zoo.md"),
    ],
)
def test_the_files_that_published_configs_name_are_refused_with_where_they_come_from(name, origin):
    with pytest.raises(FileNotFoundError, match=rf"'{name}' does not exist .*: {origin}"):
        read_weight_file(name)
    assert (CONFIGS.parent / origin).is_file()


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"model": {}, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"holds no tensors; its entries are \['epoch', 'model'\]"):
        read_weight_file(tmp_path / "a.pth")


def test_arrays_in_a_foreign_byte_order_are_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"weight": np.arange(3, dtype=">f8")}}))
    read: Tensor = read_weight_file(tmp_path / "a.pkl").tensors["weight"]
    assert read.tolist() == [0, 1, 2] and read.dtype == torch.float64


def _named_by_hash(folder, form, digest, *, save=_save_pkl):
    save(folder / "unnamed")
    prefix = hashlib.new(digest, (folder / "unnamed").read_bytes()).hexdigest()
    return (folder / "unnamed").rename(folder / form.format(prefix[:6], prefix[:8]))


@pytest.mark.parametrize(
    ("form", "digest"),
    [("model_final_{0}.pkl", "md5"), ("resnet50-{1}.pth", "sha256"), ("model_final_{0}.pkl", "sha256")],
)
def test_a_file_with_the_hash_that_its_name_promises_is_read(tmp_path, form, digest):
    path = _named_by_hash(tmp_path, form, digest)
    assert read_weight_file(path).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("name", ["model_final_94dc52.pkl", "resnet101-63fe2227.pth"])
def test_a_file_with_another_hash_than_its_name_promises_is_refused_with_both(tmp_path, name):
    _save_pkl(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    promised = name.rsplit(".", 1)[0].replace("-", "_").rsplit("_", 1)[1]
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()[: len(promised)]
    with pytest.raises(ValueError, match=rf"{name}' .*cut off or altered: .*hash {promised}, it has .*{found} \(md5\)"):
        read_weight_file(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["model_final.pkl", "model_0004999.pth", "model-20260131.pth", "model_final_94dc52.pth", "swin_tiny_224.pkl"],
)
def test_names_that_promise_no_hash_are_not_checked(tmp_path, name):
    _save_pkl(tmp_path / name)
    assert read_weight_file(tmp_path / name).tensors.keys() == TENSORS.keys()


def test_half_precision_is_half_as_large_and_keeps_integers(tmp_path):
    tensors = {"weight": torch.randn(1000), "index": torch.arange(3)}
    write_weights(tensors, tmp_path / "half.safetensors", dtype=torch.float16)
    read = read_weight_file(tmp_path / "half.safetensors").tensors
    assert read["weight"].dtype == torch.float16 and torch.equal(read["index"], tensors["index"])
    assert (tmp_path / "half.safetensors").stat().st_size < 2400
