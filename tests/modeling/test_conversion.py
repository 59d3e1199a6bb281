"""Weights of every kind become every other kind without the loss of a bit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from mask2former.modeling.conversion import convert_checkpoint, convert_swin, convert_torchvision
from mask2former.modeling.transformers_folder import write_transformers
from mask2former.modeling.weight_names import is_derived
from mask2former.modeling.weight_sources import read_weights
from mask2former.modeling.weight_writing import write_weights
from tests.tiny_model import tiny_config, tiny_model

KINDS = ["a.pkl", "a.pth", "a.safetensors", "hf:folder"]


@pytest.fixture(scope="module")
def cfg():
    return tiny_config("INPUT.FORMAT", "RGB")


@pytest.fixture(scope="module")
def tensors():
    return tiny_model().state_dict()


def _at(folder, kind):
    """`kind` inside a folder, which is made."""
    folder.mkdir(exist_ok=True)
    return f"hf:{folder / kind[3:]}" if kind.startswith("hf:") else folder / kind


def _write(tensors, path, cfg):
    if str(path).startswith("hf:"):
        write_transformers(str(path)[3:], cfg, tensors, None)
    else:
        write_weights(tensors, path)


def _assert_equal(read, tensors):
    expected = {name: tensor for name, tensor in tensors.items() if not is_derived(name)}
    assert {name for name in read if not is_derived(name)} == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_every_kind_becomes_every_other_bit_for_bit(tmp_path, cfg, tensors, source, target):
    source, target = _at(tmp_path / "in", source), _at(tmp_path / "out", target)
    _write(tensors, source, cfg)
    convert_checkpoint(source, target, cfg=cfg)
    _assert_equal(read_weights(target).tensors, tensors)


@pytest.mark.parametrize("target", KINDS[:3])
def test_files_need_no_config_and_keep_derived_tensors(tmp_path, tensors, target):
    write_weights(tensors, tmp_path / "in.pth")
    convert_checkpoint(tmp_path / "in.pth", tmp_path / target)
    read = read_weights(tmp_path / target).tensors
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_old_names_become_current_and_say_so_to_the_original(tmp_path, tensors):
    old = {
        name.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): tensor
        for name, tensor in tensors.items()
    }
    write_weights(old, tmp_path / "in.pth")
    convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pkl")
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert content["model"].keys() == tensors.keys()
    assert all(isinstance(array, np.ndarray) for array in content["model"].values())
    # Without versions the original takes these names for old ones and renames the pixel decoder a second time.
    assert content["model"]._metadata["sem_seg_head"] == content["model"]._metadata["sem_seg_head.predictor"]
    assert content["model"]._metadata["sem_seg_head"]["version"] == 2


@pytest.mark.parametrize("target", ["a.pkl", "a.pth"])
def test_detectron2_reads_what_is_written(tmp_path, tensors, target):
    write_weights(tensors, tmp_path / target)
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    DetectionCheckpointer(model).load(str(tmp_path / target))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_detectron2_finds_the_beginning_of_a_backbone_file(tmp_path, tensors):
    names = [name for name in tensors if name.startswith("backbone.") and not name.startswith("backbone.norm")]
    write_weights({name.removeprefix("backbone."): tensors[name] for name in names}, tmp_path / "a.pkl")
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    DetectionCheckpointer(model).load(str(tmp_path / "a.pkl"))
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_floating_tensors_get_the_type_asked_for(tmp_path, tensors, dtype):
    write_weights(tensors, tmp_path / "in.pth")
    convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.safetensors", dtype=dtype)
    read = read_weights(tmp_path / "out.safetensors").tensors
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor.to(dtype) if tensor.is_floating_point() else tensor), name


def test_a_backbone_of_another_library_gets_the_names_of_the_model(tmp_path, cfg):
    torch.manual_seed(0)
    theirs = timm.models.swin_transformer.SwinTransformer(
        img_size=128, num_classes=3, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4
    )
    torch.save(theirs.state_dict(), tmp_path / "in.pth")
    convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.safetensors", cfg=cfg)
    read = read_weights(tmp_path / "out.safetensors").tensors
    assert all(name.startswith("backbone.") for name in read) and not any("head" in name for name in read)
    merging = "downsample.reduction.weight"
    assert torch.equal(read[f"backbone.layers.0.{merging}"], theirs.state_dict()[f"layers.1.{merging}"])


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("a.bin", {}, r"a.bin' must end in one of .pkl, .pth, .safetensors"),
        ("folder", {}, "folder' is a transformers folder, which needs the config"),
        ("hf:folder.d", {}, "folder.d' is a transformers folder, which needs the config"),
        ("a.pkl", {"dtype": torch.bfloat16}, "know no bfloat16"),
        ("model_final_94dc52.pkl", {}, "is a name for a file of a certain hash"),
    ],
)
def test_impossible_targets_are_refused_before_anything_is_read(tmp_path, target, options, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "nowhere.pth", _at(tmp_path, target), **options)


@pytest.mark.parametrize("target", KINDS)
def test_what_exists_is_replaced_only_on_demand(tmp_path, cfg, tensors, target):
    write_weights(tensors, tmp_path / "in.pth")
    target = _at(tmp_path / "out", target)
    _write({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, target, cfg)
    with pytest.raises(FileExistsError, match="exists already: add --overwrite"):
        convert_checkpoint(tmp_path / "in.pth", target, cfg=cfg)
    kept = read_weights(target).tensors
    assert not any(tensor.any() for name, tensor in kept.items() if not is_derived(name))
    convert_checkpoint(tmp_path / "in.pth", target, cfg=cfg, overwrite=True)
    _assert_equal(read_weights(target).tensors, tensors)


@pytest.mark.parametrize("convert", [convert_torchvision, convert_swin])
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("old.pkl", FileExistsError, "exists already: add --overwrite"),
        ("R-50.pth", ValueError, "must end in .pkl"),
        ("model_final_94dc52.pkl", ValueError, "of a certain hash"),
    ],
)
def test_backbones_are_written_only_where_they_will_be_read(tmp_path, convert, name, error, message):
    (tmp_path / "old.pkl").write_bytes(b"old")
    with pytest.raises(error, match=message):
        convert(tmp_path / "nowhere.pth", tmp_path / name)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_missing_folder_is_made(tmp_path, tensors):
    write_weights(tensors, tmp_path / "new" / "folder" / "a.pkl")
    convert_checkpoint(tmp_path / "new" / "folder" / "a.pkl", tmp_path / "another" / "a.pth")
    _assert_equal(read_weights(tmp_path / "another" / "a.pth").tensors, tensors)


def test_a_transformers_folder_of_half_precision_is_refused(tmp_path, cfg):
    with pytest.raises(ValueError, match=r"which holds float32, not torch.float16"):
        convert_checkpoint(tmp_path / "nowhere.pth", tmp_path / "folder", cfg=cfg, dtype=torch.float16)


def test_bfloat16_weights_are_not_written_as_arrays(tmp_path, tensors):
    write_weights(tensors, tmp_path / "in.pth", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"out.pkl'.* know no bfloat16, the type of .* choose float32 or float16"):
        convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pkl")
    assert not (tmp_path / "out.pkl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("MODEL.SWIN.DEPTHS", [1, 1, 2, 1]), "of another architecture .* missing, e.g. backbone.layers.2.blocks.1"),
        (("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 9), "a class head for 4 classes, the model one for 9"),
        (
            ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 9),
            "not of the model of this config, which has other sizes of .*query",
        ),
    ],
)
def test_weights_that_are_not_of_the_config_are_refused_and_nothing_is_written(tmp_path, tensors, change, message):
    write_weights(tensors, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pkl", cfg=tiny_config(*change))
    assert not (tmp_path / "out.pkl").exists()


def _resnet18(**options):
    torch.manual_seed(0)
    return torchvision.models.resnet18(**options)


@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state}], ids=["plain", "state_dict"])
def test_a_resnet_of_torchvision_becomes_a_file_of_detectron2(tmp_path, wrap):
    state = _resnet18().state_dict()
    torch.save(wrap(state), tmp_path / "in.pth")
    names = convert_torchvision(tmp_path / "in.pth", tmp_path / "R-18.pkl")
    content = pickle.loads((tmp_path / "R-18.pkl").read_bytes())
    assert content["__author__"] == "torchvision" and content["matching_heuristics"] is True
    assert names.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert content["model"].keys() == set(names.values())
    for name, new_name in names.items():
        assert np.array_equal(content["model"][new_name], state[name].numpy())
    assert {"stem.conv1.weight", "stem.conv1.norm.bias", "res3.0.shortcut.norm.weight"} <= set(names.values())


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: timm.create_model("resnet26d"), "it holds conv1.0.weight"),
        (lambda: nn.Linear(2, 2), "it lacks 'layer4.0.conv1.weight'"),
    ],
)
def test_what_is_no_resnet_of_torchvision_is_refused(tmp_path, create, message):
    torch.save(create().state_dict(), tmp_path / "in.pth")
    with pytest.raises(ValueError, match=rf"in.pth' is no ResNet of torchvision: {message}"):
        convert_torchvision(tmp_path / "in.pth", tmp_path / "out.pkl")
    assert not (tmp_path / "out.pkl").exists()


def test_a_swin_of_its_authors_becomes_a_file_of_detectron2_unchanged(tmp_path, tensors):
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.") and not name.startswith("backbone.norm")
    }
    state |= {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64), "head.weight": torch.ones(9, 64)}
    state |= {"head.bias": torch.ones(9), "layers.0.blocks.0.attn_mask": torch.ones(4, 16, 16)}
    torch.save({"model": state}, tmp_path / "in.pth")
    assert convert_swin(tmp_path / "in.pth", tmp_path / "out.pkl") == len(state)
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert content["__author__"] == "third_party" and content["matching_heuristics"] is True
    assert content["model"].keys() == state.keys()
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tiny_patch4_window7_224", "it lacks 'layers.0.downsample.reduction.weight'"),  # timm's own order
        ("swinv2_tiny_window8_256", "it lacks|it holds"),
    ],
)
def test_what_is_no_swin_of_its_authors_is_refused(tmp_path, name, message):
    state = {name: torch.zeros(()) for name in _names_without_memory(name)}
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=rf"in.pth' is no Swin of its authors: {message}"):
        convert_swin(tmp_path / "in.pth", tmp_path / "out.pkl")


def _names_without_memory(name):
    with torch.device("meta"):
        return list(timm.create_model(name).state_dict())


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
    tensors = {"a.running_var": torch.tensor([1e6]), "a.mask": torch.tensor([float("-inf")])}
    with pytest.raises(ValueError, match=r"a\.running_var hold numbers too large for torch.float16: choose bfloat16"):
        write_weights(tensors, tmp_path / "a.pth", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    write_weights(tensors, tmp_path / "a.pth", dtype=torch.bfloat16)
