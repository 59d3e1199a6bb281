"""A folder is written whole or not at all, and read in all the forms that transformers gives it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mask2former.modeling import transformers_folder
from mask2former.modeling.transformers_folder import read_transformers, write_transformers
from mask2former.modeling.transformers_weights import DERIVED_ENDINGS
from tests.modeling.transformers_cases import CASES, case_config, case_model

CASE = "Swin-T, instance"
FILES = ["config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def cfg():
    return case_config(CASE)


@pytest.fixture(scope="module")
def state_dict(cfg):
    return case_model(cfg).state_dict()


@pytest.fixture
def folder(tmp_path, cfg, state_dict):
    write_transformers(tmp_path / "model", cfg, state_dict, None)
    return tmp_path / "model"


def assert_same(tensors, state_dict):
    assert set(tensors) == {name for name in state_dict if not name.endswith(DERIVED_ENDINGS)}
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in tensors.items())


def split_into_shards(folder, save, names):
    """Replace the weights of a folder by two files and an index, as transformers writes big models."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: names[index % 2] for index, name in enumerate(tensors)}
    for file in names:
        save({name: tensors[name] for name, where in weight_map.items() if where == file}, folder / file)
    index = folder / f"{'model.safetensors' if names[0].endswith('safetensors') else 'pytorch_model.bin'}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("case", CASES)
def test_what_was_written_is_read_back_bit_for_bit(tmp_path, case):
    state_dict = case_model(case_config(case)).state_dict()
    write_transformers(tmp_path / "new" / "model", case_config(case), state_dict, None)
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == FILES
    checkpoint = read_transformers(tmp_path / "new" / "model")
    assert_same(checkpoint.tensors, state_dict)
    assert checkpoint.config["model_type"] == "mask2former"


def test_half_precision_widens_without_loss(tmp_path, cfg, state_dict):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}
    write_transformers(tmp_path / "model", cfg, half, None)
    tensors = read_transformers(tmp_path / "model").tensors
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    del tensors["criterion.empty_weight"]
    assert all(torch.equal(tensor, half[name].float()) for name, tensor in tensors.items())


def test_class_weights_follow_from_the_config_not_from_the_file(tmp_path, cfg, state_dict):
    without = {name: tensor for name, tensor in state_dict.items() if name != "criterion.empty_weight"}
    write_transformers(tmp_path / "model", cfg, without, None)
    weights = read_transformers(tmp_path / "model").tensors["criterion.empty_weight"]
    assert weights.tolist() == pytest.approx([1.0] * 80 + [0.1])


@pytest.mark.parametrize(
    ("save", "names"),
    [
        (save_file, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        (torch.save, ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]),
    ],
)
def test_several_files_are_read_as_one(folder, state_dict, save, names):
    split_into_shards(folder, save, names)
    assert_same(read_transformers(folder).tensors, state_dict)


def test_a_pickled_file_is_read(folder, state_dict):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same(read_transformers(folder).tensors, state_dict)


def test_a_single_file_has_no_config(folder, state_dict):
    checkpoint = read_transformers(folder / "model.safetensors")
    assert_same(checkpoint.tensors, state_dict)
    assert checkpoint.config is None


def test_a_missing_shard_is_named(folder):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    split_into_shards(folder, save_file, names)
    (folder / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=names[1]):
        read_transformers(folder)


def test_a_tensor_that_its_shard_lacks_is_named(folder):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = split_into_shards(folder, save_file, names)
    content = json.loads(index.read_text())
    content["weight_map"]["class_predictor.extra"] = names[0]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model-00001.* lacks 'class_predictor\.extra'"):
        read_transformers(folder)


def test_an_index_does_not_lead_out_of_its_folder(folder):
    index = split_into_shards(folder, save_file, ["a.safetensors", "b.safetensors"])
    index.write_text(json.dumps({"weight_map": {"class_predictor.bias": "../other.safetensors"}}))
    with pytest.raises(ValueError, match=r"'\.\./other\.safetensors', which is no file of this folder"):
        read_transformers(folder)


@pytest.mark.parametrize("weight_map", [["a"], {"class_predictor.bias": 1}])
def test_an_index_that_is_none_is_refused(folder, weight_map):
    index = split_into_shards(folder, save_file, ["a.safetensors", "b.safetensors"])
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=rf"{index.name} has no weight_map of names to files"):
        read_transformers(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{str(folder)!r}.*{name}"):
        read_transformers(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_transformers(tmp_path / "nowhere")


@pytest.mark.parametrize(("text", "reason"), [("{", "is no JSON"), ("[]", "holds no JSON object")])
def test_a_broken_config_is_named(folder, text, reason):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{reason}"):
        read_transformers(folder)


def test_a_config_that_we_cannot_represent_is_refused_before_its_weights_are_read(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "activation_function": "gelu"}))
    monkeypatch.setattr(transformers_folder, "read_weight_file", lambda path: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=rf"{str(folder)!r}.*activation_function='gelu'"):
        read_transformers(folder)


def test_a_file_of_another_model_is_refused_by_name(tmp_path):
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors.*'encoder\.weight'"):
        read_transformers(tmp_path / "model.safetensors")


def test_a_checkpoint_is_replaced(folder, cfg, state_dict):
    changed = {**state_dict, "backbone.norm0.bias": state_dict["backbone.norm0.bias"] + 1}
    write_transformers(folder, cfg, changed, None)
    assert_same(read_transformers(folder).tensors, changed)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_other_files_are_never_replaced(folder, cfg, state_dict):
    before = (folder / "model.safetensors").read_bytes()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        write_transformers(folder, cfg, {}, None)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, cfg, state_dict):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FileExistsError, match="model"):
        write_transformers(tmp_path / "model", cfg, state_dict, None)


def test_an_interrupted_write_leaves_the_old_checkpoint(folder, cfg, state_dict, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    changed = {**state_dict, "backbone.norm0.bias": state_dict["backbone.norm0.bias"] + 1}
    with monkeypatch.context() as patch:
        patch.setattr(transformers_folder, "save_file", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_transformers(folder, cfg, changed, None)
    assert_same(read_transformers(folder).tensors, state_dict)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path, cfg, state_dict):
    (tmp_path / ".model.unfinished").mkdir()
    (tmp_path / ".model.unfinished" / "config.json").write_text("{")
    write_transformers(tmp_path / "model", cfg, state_dict, None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sem_seg_head.predictor.query_feat.weight": torch.zeros(5, 16)}, r"\(6, 16\) under .*query_feat.*\(5, 16\)"),
        ({"backbone.layers.4.blocks.0.norm1.weight": torch.zeros(5)}, r"no tensor under .*layers\.4"),
        ({"backbone.norm3.bias": None}, r"\(96,\) under 'backbone\.norm3\.bias': it is missing"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(tmp_path, cfg, state_dict, change, reason):
    changed = {name: tensor for name, tensor in {**state_dict, **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=reason):
        write_transformers(tmp_path / "model", cfg, changed, None)
    assert not list(tmp_path.iterdir())
