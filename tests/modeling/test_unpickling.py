"""Pickles give numbers and plain containers; what else they ask for is named and never run."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mask2former.modeling.unpickling import unpickle, unpickle_torch
from mask2former.modeling.weight_files import read_weight_file


class _CreatesFile:
    """Unpickling this the usual way creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class _Calls:
    """Unpickling this calls a function: `torch.load`, which runs the pickle inside if it is not told otherwise."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _torch_bytes(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _nested(content) -> bytes:
    """The pickle of a tensor, whose storage is bytes of `torch.save` again: they hold `content` instead."""
    return pickle.dumps({"model": _Calls(torch.storage._load_from_bytes, _torch_bytes(content)), "__author__": "x"})


WRITERS = {
    "a.pkl": pickle.dumps,
    "protocol_0.pkl": lambda content: pickle.dumps(content, protocol=0),
    "inside_a_tensor.pkl": _nested,
    "a.pth": _torch_bytes,
    "before_zip.pth": lambda content: _torch_bytes(content, _use_new_zipfile_serialization=False),
    "a_pickle.pth": pickle.dumps,
    "a.bin": _torch_bytes,
    "a_pickle.safetensors": pickle.dumps,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_pickle_with_code_is_refused_by_name_and_the_code_not_run(tmp_path, name):
    victim = tmp_path / "victim"
    content = {"model": {"weight": np.zeros(3)}, "__author__": "x", "extra": _CreatesFile(victim)}
    (tmp_path / name).write_bytes(WRITERS[name](content))
    pickle.loads(pickle.dumps(_CreatesFile(victim)))
    assert victim.exists(), "the attack must work where nobody defends"
    victim.unlink()
    with pytest.raises(ValueError, match=r"refused: it asks for (pathlib\.\S*|\w*\.?getattr), which is") as caught:
        read_weight_file(tmp_path / name)
    assert "weights_only" not in str(caught.value), "nobody is told to run the code nevertheless"
    assert not victim.exists()


def test_the_archive_that_torch_wrote_long_ago_is_refused_without_advice(tmp_path):
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read_weight_file(tmp_path / "a.pth")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "asks_for"),
    [
        (np.zeros(2, dtype="f4,i4"), "a NumPy array of type 'V8'"),
        (np.array([nn.ReLU()], dtype=object), "torch.nn.modules.activation.ReLU"),
        (_Calls(pickle.loads, b"N."), "_pickle.loads"),
        (_Calls(torch.load, "a.pth"), "torch.serialization.load"),
        (_Calls(eval, "1"), "builtins.eval"),
        (nn.ReLU(), "torch.nn.modules.activation.ReLU"),
    ],
    ids=["records", "objects", "pickle", "torch", "eval", "module"],
)
def test_everything_but_tensors_and_plain_values_is_refused(content, asks_for):
    with pytest.raises(pickle.UnpicklingError, match=f"it asks for {asks_for}, which is neither tensor nor plain"):
        unpickle(io.BytesIO(pickle.dumps({"model": {"weight": content}})))


CONTENT = {
    "array": np.arange(4, dtype=np.float32),
    "big endian": np.arange(4, dtype=">f4"),
    "half": torch.randn(3).half(),
    "parameter": nn.Parameter(torch.ones(2, 3).bfloat16()),
    "transposed": torch.randn(4, 3).t(),
    "scalar": np.float32(3),
    "bytes": b"abc",
    "flag": np.bool_(True),
}


def _assert_same(read, written):
    assert read.keys() == written.keys()
    for name, value in written.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(read[name], value.detach()) and read[name].dtype == value.dtype, name
        else:
            assert np.array_equal(read[name], value), name


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_every_kind_and_protocol_are_read(protocol):
    content = {**CONTENT, "set": {1, 2}}
    _assert_same(unpickle(io.BytesIO(pickle.dumps(content, protocol))), content)


@pytest.mark.parametrize("is_zip", [True, False])
def test_numbers_of_every_kind_are_read_from_what_torch_saved(is_zip):
    saved = _torch_bytes(CONTENT, _use_new_zipfile_serialization=is_zip)
    _assert_same(unpickle_torch(io.BytesIO(saved)), CONTENT)
