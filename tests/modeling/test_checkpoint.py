"""What weights a model takes, what it refuses, and what a kill leaves behind."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mask2former.modeling.checkpoint import MaskFormerCheckpointer, current_names, export_weights, load_weights
from mask2former.modeling.weight_files import read_weight_file

NUM_CLASSES = 5


class Predictor(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.query_feat = nn.Embedding(3, 4)
        self.class_embed = nn.Linear(4, num_classes + 1)


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.pixel_decoder = nn.ModuleDict({"mask_features": nn.Conv2d(4, 4, 1), "adapter_1": nn.Conv2d(2, 4, 1)})
        self.predictor = Predictor(num_classes)


class Model(nn.Module):
    """The published names in miniature."""

    def __init__(self, num_classes=NUM_CLASSES, no_object_weight=0.1):
        super().__init__()
        stages = {"res2": nn.Conv2d(3, 2, 1), "res3": nn.Conv2d(2, 4, 3)}
        self.backbone = nn.ModuleDict({**stages, "norm0": nn.LayerNorm(4)})
        self.sem_seg_head = Head(num_classes)
        self.criterion = nn.Module()
        weights = torch.ones(num_classes + 1)
        weights[-1] = no_object_weight
        self.criterion.register_buffer("empty_weight", weights)


def _filled(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def _arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _assert_loaded(model, value=7.0, except_in=()):
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(except_in)):
            assert (parameter == value).all(), name


def _save_pth(model, path):
    torch.save({"model": model.state_dict(), "iteration": 3}, path)


def _save_plain_pth(model, path):
    torch.save(model.state_dict(), path)


def _save_pkl(model, path):
    path.write_bytes(pickle.dumps({"model": _arrays(model), "__author__": "somebody"}))


def _save_pkl_of_tensors(model, path):
    path.write_bytes(pickle.dumps({"model": dict(model.state_dict()), "__author__": "third_party"}))


def _save_half_safetensors(model, path):
    export_weights(model.state_dict(), path)


FORMATS = {
    "a.pth": _save_pth,
    "plain.pth": _save_plain_pth,
    "a.pkl": _save_pkl,
    "tensors.pkl": _save_pkl_of_tensors,
    "half.safetensors": _save_half_safetensors,
}


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_every_format_arrive(tmp_path, name):
    path = tmp_path / name
    FORMATS[name](_filled(Model(), 7.0), path)
    model = Model()
    MaskFormerCheckpointer(model).load(str(path), checkpointables=[])
    _assert_loaded(model)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_half_precision_export_is_half_as_large_and_keeps_integers(tmp_path):
    tensors = {"weight": torch.randn(1000), "index": torch.arange(3)}
    export_weights(tensors, tmp_path / "half.safetensors")
    read = read_weight_file(tmp_path / "half.safetensors").tensors
    assert read["weight"].dtype == torch.float16 and torch.equal(read["index"], tensors["index"])
    assert (tmp_path / "half.safetensors").stat().st_size < 2400


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    FORMATS[name](Model(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name}' \(\d+ bytes\) cannot be read: it is cut off"):
        MaskFormerCheckpointer(Model()).load(str(path))


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="cannot be read"):
        read_weight_file(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
@pytest.mark.parametrize("content", [b"hello\nworld\n", b"<html>404</html>", b"0123456789" * 9, b"]q\x00(c"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' \(\d+ bytes\) cannot be read"):
        read_weight_file(tmp_path / name)


def test_an_address_that_does_not_answer_is_named():
    with pytest.raises(FileNotFoundError, match=r"'http://127.0.0.1:9/a.pkl' \(MODEL.WEIGHTS\) cannot be fetched"):
        MaskFormerCheckpointer(Model()).load("http://127.0.0.1:9/a.pkl")


def test_a_missing_file_is_refused_with_the_config_key():
    with pytest.raises(FileNotFoundError, match=r"'nowhere.pth' does not exist \(MODEL.WEIGHTS"):
        MaskFormerCheckpointer(Model()).load("nowhere.pth")


class _Attack:
    def __reduce__(self):
        return print, ("code in a checkpoint was run",)


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_a_pickle_with_code_is_refused_and_the_code_not_run(tmp_path, name, capsys):
    content = {"model": {"weight": np.zeros(3)}, "__author__": "x", "extra": _Attack()}
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match="it asks for .*print, which is neither") as caught:
        read_weight_file(tmp_path / name)
    assert "weights_only" not in str(caught.value), "nobody is told to run the code nevertheless"
    assert "was run" not in capsys.readouterr().out


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"model": {}, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"holds no tensors; its entries are \['epoch', 'model'\]"):
        read_weight_file(tmp_path / "a.pth")


def _old_name(name):
    return name.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")


def test_old_names_are_recognized_by_content():
    names = dict.fromkeys(Model().state_dict(), torch.zeros(1))
    renamed, num_changed = current_names({_old_name(name): tensor for name, tensor in names.items()})
    assert list(renamed) == list(names) and num_changed == 5


def test_current_names_without_version_metadata_stay(tmp_path):
    # The original renamed these, because a plain dict carries no version: the pixel decoder stayed random.
    names = dict.fromkeys(Model().state_dict(), torch.zeros(1))
    assert current_names(names) == (names, 0)


def test_names_may_carry_the_prefix_of_a_parallel_wrapper():
    renamed, num_changed = current_names({"module.backbone.res2.weight": torch.zeros(1)})
    assert list(renamed) == ["backbone.res2.weight"] and num_changed == 0


def test_published_pickles_with_old_names_load_completely(tmp_path):
    model = _filled(Model(), 7.0)
    old = OrderedDict((_old_name(name), array) for name, array in _arrays(model).items())
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"model": old, "__author__": "Mask2Former"}))
    fresh = Model()
    report = load_weights(fresh, read_weight_file(tmp_path / "old.pkl"))
    _assert_loaded(fresh)
    assert report.renamed == 5 and not report.fresh and not report.unused


def test_the_summary_counts_what_is_new_and_what_is_unused(tmp_path, caplog):
    tensors = {name: tensor for name, tensor in Model().state_dict().items() if "predictor" not in name}
    save_file({**tensors, "roi_heads.fc.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with caplog.at_level("INFO"):
        MaskFormerCheckpointer(Model()).load(str(tmp_path / "a.safetensors"))
    assert "10 tensors loaded" in caplog.text
    assert "3 not in the file, start as initialized: sem_seg_head.predictor (3)" in caplog.text
    assert "1 in the file, not used: roi_heads (1)" in caplog.text


def _changed(model, **changes):
    state = dict(model.state_dict())
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone__res3__weight": torch.zeros(4, 2, 1, 1)},
            r"shape, e.g. backbone.res3.weight \(4, 2, 1, 1\)",
        ),
        ({"backbone__res3__weight": None}, "1 missing, e.g. backbone.res3.weight"),
        ({"backbone__res9__weight": torch.zeros(1)}, "1 that the model does not have, e.g. backbone.res9.weight"),
        ({"sem_seg_head__predictor__class_embed__weight": torch.zeros(6, 8)}, "another shape"),
    ],
    ids=["shape", "missing", "extra", "width of the class head"],
)
def test_weights_of_another_architecture_are_refused(tmp_path, changes, message):
    torch.save({"model": _changed(Model(), **changes)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a.pth' is of another architecture .*{message}"):
        MaskFormerCheckpointer(Model()).load(str(tmp_path / "a.pth"))


def test_weights_of_something_else_are_refused(tmp_path):
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"fits this model nowhere: it holds encoder \(1\), the model backbone"):
        MaskFormerCheckpointer(Model()).load(str(tmp_path / "a.pth"))


def test_a_class_head_of_another_size_is_refused_with_both_cures(tmp_path):
    _save_pth(Model(num_classes=8), tmp_path / "a.pth")
    message = "for 8 classes, the model one for 5: set MODEL.SEM_SEG_HEAD.NUM_CLASSES to 8, or MODEL.WEIGHTS_ALLOW"
    with pytest.raises(ValueError, match=message):
        MaskFormerCheckpointer(Model()).load(str(tmp_path / "a.pth"))


def test_a_class_head_of_another_size_starts_afresh_when_allowed(tmp_path):
    _save_pth(_filled(Model(num_classes=8), 7.0), tmp_path / "a.pth")
    model = _filled(Model(), 1.0)
    MaskFormerCheckpointer(model, allow_head_mismatch=True).load(str(tmp_path / "a.pth"))
    head = "sem_seg_head.predictor.class_embed"
    _assert_loaded(model, except_in=[head])
    assert (model.sem_seg_head.predictor.class_embed.weight == 1).all()


def test_the_weight_of_no_object_is_that_of_the_config(tmp_path):
    _save_pth(Model(no_object_weight=0.1), tmp_path / "a.pth")
    model = Model(no_object_weight=0.4)
    MaskFormerCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert model.criterion.empty_weight[-1] == pytest.approx(0.4)


def _save_backbone(path, **changes):
    tensors = {"res2.weight": np.full((2, 3, 1, 1), 7.0), "res3.weight": np.full((4, 2, 3, 3), 7.0), **changes}
    path.write_bytes(pickle.dumps({"model": tensors, "__author__": "torchvision", "matching_heuristics": True}))
    return str(path)


def test_a_backbone_file_matches_by_suffix_and_skips_what_does_not_fit(tmp_path):
    model = _filled(Model(), 1.0)
    # As in ImageNet Swin files: a last `weight` of a norm that ends many names, with another shape.
    path = _save_backbone(tmp_path / "a.pkl", **{"norm0.weight": np.zeros(9), "fc.weight": np.zeros(3)})
    MaskFormerCheckpointer(model).load(path)
    assert (model.backbone["res2"].weight == 7).all() and (model.backbone["res3"].weight == 7).all()
    assert (model.backbone["norm0"].weight == 1).all() and (model.backbone["res2"].bias == 1).all()


def test_a_name_that_fits_two_places_is_refused(tmp_path):
    model = Model()
    model.backbone["stem"] = nn.ModuleDict({"res2": nn.Conv2d(3, 2, 1)})
    with pytest.raises(ValueError, match=r"'res2.weight' .* fits both 'backbone.res2.weight' and 'backbone.stem.res2"):
        MaskFormerCheckpointer(model).load(_save_backbone(tmp_path / "a.pkl"))


def test_no_weights_mean_a_start_from_scratch(caplog):
    with caplog.at_level("INFO"):
        assert MaskFormerCheckpointer(Model()).load("") == {}
    assert "MODEL.WEIGHTS is empty" in caplog.text


class Counter:
    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_a_checkpoint_holds_what_it_was_told_to_and_is_the_last(tmp_path):
    MaskFormerCheckpointer(_filled(Model(), 7.0), str(tmp_path), trainer=Counter(4)).save("model_4", note="x")
    model, counter = Model(), Counter()
    checkpointer = MaskFormerCheckpointer(model, str(tmp_path), trainer=counter)
    rest = checkpointer.resume_or_load("unused", resume=True)
    _assert_loaded(model)
    assert counter.count == 4 and rest == {"note": "x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_4.pth"]


def test_a_run_killed_while_saving_leaves_its_last_checkpoint_whole(tmp_path, monkeypatch):
    checkpointer = MaskFormerCheckpointer(_filled(Model(), 7.0), str(tmp_path))
    checkpointer.save("model")

    def interrupted(data, file):
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    for name in ("model", "later"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model.pth")
    model = Model()
    MaskFormerCheckpointer(model).load(str(tmp_path / "model.pth"))
    _assert_loaded(model)
