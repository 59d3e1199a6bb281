"""What weights a model takes, what it refuses, and what a kill leaves behind."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mask2former.modeling.checkpoint import MaskFormerCheckpointer, load_weights
from mask2former.modeling.transformers_folder import write_transformers
from mask2former.modeling.weight_files import WeightFile, read_weight_file
from mask2former.modeling.weight_fitting import fit_weights
from mask2former.modeling.weight_writing import write_weights
from tests.tiny_model import tiny_config, tiny_model

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


def test_half_precision_weights_arrive_as_the_model_computes(tmp_path):
    write_weights(_filled(Model(), 7.0).state_dict(), tmp_path / "half.safetensors", dtype=torch.float16)
    model = Model()
    MaskFormerCheckpointer(model).load(str(tmp_path / "half.safetensors"), checkpointables=[])
    _assert_loaded(model)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_an_address_that_does_not_answer_is_named():
    with pytest.raises(FileNotFoundError, match=r"'http://127.0.0.1:9/a.pkl' \(MODEL.WEIGHTS\) cannot be fetched"):
        MaskFormerCheckpointer(Model()).load("http://127.0.0.1:9/a.pkl")


def _old_name(name):
    return name.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")


def test_published_pickles_with_old_names_load_completely(tmp_path):
    model = _filled(Model(), 7.0)
    old = OrderedDict((_old_name(name), array) for name, array in _arrays(model).items())
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"model": old, "__author__": "Mask2Former"}))
    fresh = Model()
    report = load_weights(fresh, read_weight_file(tmp_path / "old.pkl"))
    _assert_loaded(fresh)
    assert len(report.renamed) == 5 and not report.fresh and not report.unused


def test_loading_prints_one_table(tmp_path, caplog):
    tensors = {name: tensor for name, tensor in Model().state_dict().items() if "predictor" not in name}
    tensors["sem_seg_head.mask_features.bias"] = tensors.pop("sem_seg_head.pixel_decoder.mask_features.bias")
    save_file({**tensors, "roi_heads.fc.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with caplog.at_level("INFO"):
        MaskFormerCheckpointer(Model()).load(str(tmp_path / "a.safetensors"))
    (message,) = caplog.messages
    lines = [re.split(r"  +", line.strip()) for line in message.splitlines()]
    assert lines[0] == [f"Weights from {tmp_path / 'a.safetensors'}:"]
    assert lines[1] == ["part", "loaded", "renamed", "fresh", "unused"]
    assert lines[3:7] == [
        ["backbone", "6"],
        ["sem_seg_head.pixel_decoder", "4", "1"],
        ["sem_seg_head.predictor", "3"],
        ["roi_heads", "1"],
    ]
    head = "sem_seg_head.predictor"
    names = f"{head}.query_feat.weight, {head}.class_embed.weight, {head}.class_embed.bias"
    assert lines[7] == [f"fresh (not in the file, start as initialized): {names}"]
    assert lines[8] == ["unused (in the file, not used): roi_heads.fc.weight"]


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_run_that_diverged_are_refused(tmp_path, value):
    _save_pth(_filled(Model(), value), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"has NaN or infinity in \d+ tensors, e.g. backbone.* had diverged"):
        MaskFormerCheckpointer(Model()).load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(("must_be_complete", "warns"), [(True, True), (False, False)])
def test_what_stays_random_in_a_model_that_will_not_learn_is_a_warning(tmp_path, caplog, must_be_complete, warns):
    tensors = {name: tensor for name, tensor in Model().state_dict().items() if "predictor" not in name}
    save_file(tensors, tmp_path / "a.safetensors")
    MaskFormerCheckpointer(Model(), must_be_complete=must_be_complete).load(str(tmp_path / "a.safetensors"))
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert bool(said) == warns
    assert (
        not warns
        or "not the whole model: what stays random, and with it all results, is sem_seg_head.predictor (3)" in said[0]
    )


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


@pytest.mark.parametrize("num_queries", [2, 7])
def test_another_number_of_queries_keeps_the_rest(num_queries):
    source = _filled(Model(), 7.0)
    model = Model()
    model.sem_seg_head.predictor.query_feat = nn.Embedding(num_queries, 4)
    report = load_weights(model, WeightFile(dict(source.state_dict())))
    _assert_loaded(model, except_in=["sem_seg_head.predictor.query_feat"])
    assert report.resized == ["sem_seg_head.predictor.query_feat.weight"]
    assert (model.sem_seg_head.predictor.query_feat.weight[:3] == 7).all()


def test_windows_of_another_size_are_resized_and_reported():
    torch.manual_seed(0)
    source, model = tiny_model(), tiny_model("MODEL.SWIN.WINDOW_SIZE", 3)
    report = load_weights(model, WeightFile(dict(source.state_dict())))
    assert len(report.resized) == 4 and all(name.endswith("relative_position_bias_table") for name in report.resized)
    assert "fitted to another window" in str(report) and "and 1 more" in str(report)


def test_queries_that_are_classes_are_a_class_head_and_not_resized():
    names = {"sem_seg_head.predictor.query_embed.weight": (5, 4), "sem_seg_head.predictor.mask_embed.weight": (4,)}
    given = {
        "sem_seg_head.predictor.query_embed.weight": torch.ones(7, 4),
        "sem_seg_head.predictor.mask_embed.weight": torch.ones(4),
    }
    with pytest.raises(ValueError, match="a class head for 7 classes, the model one for 5"):
        fit_weights(names, given)
    _, report = fit_weights(names, given, allow_head_mismatch=True)
    assert report.reset == ["sem_seg_head.predictor.query_embed.weight"]


def test_a_per_pixel_head_of_another_size_is_refused():
    names = {"sem_seg_head.predictor.weight": (5, 4, 1, 1), "sem_seg_head.predictor.bias": (5,)}
    given = {"sem_seg_head.predictor.weight": torch.ones(7, 4, 1, 1), "sem_seg_head.predictor.bias": torch.ones(7)}
    with pytest.raises(ValueError, match="a class head for 7 classes, the model one for 5"):
        fit_weights(names, given)


def _checkpointer(meta_architecture, **options):
    return MaskFormerCheckpointer.from_config(
        tiny_config("MODEL.META_ARCHITECTURE", meta_architecture), Model(), **options
    )


def test_video_recipes_start_from_models_of_other_classes(tmp_path):
    _save_pth(Model(num_classes=8), tmp_path / "a.pth")
    _checkpointer("VideoMaskFormer", starts_training=True).load(str(tmp_path / "a.pth"))
    for checkpointer in (_checkpointer("VideoMaskFormer"), _checkpointer("MaskFormer", starts_training=True)):
        with pytest.raises(ValueError, match="for 8 classes, the model one for 5"):
            checkpointer.load(str(tmp_path / "a.pth"))


@pytest.fixture
def transformers_folder(tmp_path):
    model = tiny_model()
    write_transformers(tmp_path / "folder", tiny_config("INPUT.FORMAT", "RGB"), model.state_dict(), None)
    return tmp_path / "folder", model


@pytest.mark.parametrize("form", ["hf:{}", "{}", "hf:{}/model.safetensors", "{}/model.safetensors"])
def test_weights_of_transformers_are_loaded_from_a_folder_or_file(transformers_folder, form):
    folder, source = transformers_folder
    model = _filled(tiny_model(), 7.0)
    MaskFormerCheckpointer.from_config(tiny_config(), model).load(form.format(folder))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("MODEL.MASK_FORMER.NHEADS", 4), "MODEL.MASK_FORMER.NHEADS is 4 here, the checkpoint was made with 2"),
        (("MODEL.SWIN.EMBED_DIM", 16), "MODEL.SWIN.EMBED_DIM is 16 here, the checkpoint was made with 8"),
        (("MODEL.SWIN.DEPTHS", [1, 1, 2, 1]), r"MODEL.SWIN.DEPTHS is \[1, 1, 2, 1\] here, .* with \[1, 1, 1, 1\]"),
    ],
)
def test_a_folder_of_another_model_is_refused_with_the_keys_that_differ(transformers_folder, override, message):
    folder, _ = transformers_folder
    with pytest.raises(ValueError, match=rf"folder' is of another model: {message}"):
        MaskFormerCheckpointer.from_config(tiny_config(*override), Model()).load(f"hf:{folder}")


def test_a_folder_may_have_other_queries(transformers_folder):
    folder, _ = transformers_folder
    changes = ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 9)
    model = tiny_model(*changes)
    MaskFormerCheckpointer.from_config(tiny_config(*changes), model).load(f"hf:{folder}")
    assert len(model.sem_seg_head.predictor.query_feat.weight) == 9


def test_a_missing_folder_of_transformers_is_refused():
    with pytest.raises(FileNotFoundError, match="'nowhere' does not exist"):
        MaskFormerCheckpointer(Model()).load("hf:nowhere")


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
