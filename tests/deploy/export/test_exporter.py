"""Exported models: any size in, the model's own results out, and no half of a folder.

An export takes its time, so few are made and shared: of one decoder layer behind windows, the hardest to trace.
"""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from mask2former.deploy import load
from mask2former.deploy.export import aot_inductor, exporter, formats
from mask2former.deploy.export.aot_inductor import check_compiler
from mask2former.deploy.export.exporter import ExportOptions, export_model
from mask2former.deploy.export.formats import check_format, tensorrt_command
from mask2former.deploy.export.parity import Agreement, Bounds, parity_picture
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import class_infos, segmentation_of
from tests.tiny_model import NUM_CLASSES, RESNET_18, tiny_config


@pytest.fixture(scope="module", autouse=True)
def _without_trace_log():
    """Of every line pytest would keep a copy, which takes minutes."""
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


def config(*overrides):
    return tiny_config(
        *(
            "INPUT.MIN_SIZE_TEST",
            64,
            "INPUT.MAX_SIZE_TEST",
            128,
            "MODEL.MASK_FORMER.DEC_LAYERS",
            2,
            "MODEL.SWIN.DEPTHS",
            [2, 1, 1, 1],
            *overrides,
        )
    )


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_config(config())


@pytest.fixture(scope="module")
def predictor_of_bgr():
    return Predictor.from_config(config("INPUT.FORMAT", "BGR"))


@pytest.fixture(scope="module")
def make(predictor, tmp_path_factory):
    """Exports this one model of random weights, which a config alone cannot name, or another."""

    def export(name, options, *overrides, of=predictor):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Predictor, "from_config", lambda cfg: of)
            return export_model(config(*overrides), options, tmp_path_factory.mktemp("exported") / name)

    return export


@pytest.fixture(scope="module")
def scripted(make):
    return make("scripted", ExportOptions("torchscript"))


def pictures():
    return [parity_picture(size, seed).permute(1, 2, 0).numpy() for seed, size in enumerate([(70, 90), (64, 111)])]


def check_results(segmenter, predictor, task):
    together = segmenter([pictures()[0]] * 3, task)
    assert all(result.to_json() == together[0].to_json() for result in together)
    for picture, found in zip(pictures(), segmenter(pictures(), task), strict=True):
        expected = segmentation_of(predictor(picture), task, class_infos(predictor.metadata, NUM_CLASSES))
        assert expected.segments and [segment.category for segment in found.segments] == [
            segment.category for segment in expected.segments
        ]
        if found.label_map is not None:
            assert (found.label_map != expected.label_map).mean() < 1e-3


def test_an_exported_model_is_used_like_a_checkpoint(scripted, predictor):
    script = torch.jit.load(scripted.folder / "model.ts")
    assert "embedding_bag" in script.code and "grid_sampler" not in script.code  # faster on a CPU
    assert "torch.device" not in script.code  # it runs where its input is
    segmenter = load(scripted.folder)
    assert segmenter.classes == class_infos(predictor.metadata, NUM_CLASSES) and segmenter.tasks == ("panoptic",)
    check_results(segmenter, predictor, "panoptic")
    with pytest.raises(ValueError, match="'semantic'; choose from panoptic"):
        segmenter(pictures()[0], "semantic")


def test_the_folder_says_what_it_holds(scripted):
    manifest = json.loads((scripted.folder / "manifest.json").read_text())
    assert manifest["format"] == "torchscript" and manifest["outputs"][0] == "panoptic_map"
    assert load(scripted.folder).description["weights_sha256"] == manifest["weights_sha256"]
    report = json.loads((scripted.folder / "report.json").read_text())
    assert len(report["parity"]) == 4 and report["speed"]["ratio"] > 0
    readme = (scripted.folder / "README.md").read_text()
    assert "license" in readme and "| 64 x 96 | 80 x 120 |" in readme
    assert not list(scripted.folder.parent.glob(".*"))


def test_an_existing_folder_is_not_overwritten(scripted):
    with pytest.raises(FileExistsError, match="not overwritten"):
        export_model(config(), ExportOptions("torchscript"), scripted.folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "is no exported model: it has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "model.ts").unlink(), "is incomplete: model.ts is missing"),
        (lambda folder: (folder / "classes.json").write_text("[]"), "classes.json is not the file that was written"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(scripted, tmp_path, damage, message):
    folder = tmp_path / "copy"
    shutil.copytree(scripted.folder, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_folder_of_another_version_is_refused(scripted, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(scripted.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(ValueError, match="has format version 99, this package reads 1; export it again"):
        load(folder)


def test_config_keys_cannot_change_what_is_exported(scripted):
    with pytest.raises(ValueError, match="no longer change"):
        load(scripted.folder, overrides=["INPUT.MIN_SIZE_TEST", "32"])


def test_logits_alone_give_every_task_and_a_fixed_batch_takes_any_number_of_pictures(make, predictor_of_bgr):
    predictor, options = predictor_of_bgr, ExportOptions("torch_export", task="raw", fixed_size=(64, 96), fixed_batch=2)
    exported = make("raw", options, "INPUT.FORMAT", "BGR", of=predictor)
    segmenter = load(exported.folder)
    assert segmenter.tasks == ("panoptic", "instance", "semantic")
    same = [parity_picture((64, 96), seed).permute(1, 2, 0).numpy() for seed in range(3)]
    for task in segmenter.tasks:
        for picture, found in zip(same, segmenter(same, task), strict=True):
            expected = segmentation_of(predictor(picture), task, segmenter.classes)
            assert [segment.category for segment in found.segments] == [
                segment.category for segment in expected.segments
            ]
    votes = segmenter.semantic_scores(same[0])
    assert np.array_equal(votes.argmax(axis=0), segmenter(same[0], "semantic").label_map)
    with pytest.raises(ValueError, match=r"\[64, 96\] alone, got \[64, 64\]"):
        segmenter(np.zeros((80, 80, 3), dtype=np.uint8))


def has_compiler():
    try:
        check_compiler()
    except FileNotFoundError:
        return False
    return True


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_machine_code_takes_all_sizes_batches_and_threads(make, monkeypatch):
    predictor = Predictor.from_config(config(*RESNET_18))
    exported = make("compiled", ExportOptions("aot_inductor", task="raw"), *RESNET_18, of=predictor)
    segmenter = load(exported.folder)
    for task in segmenter.tasks:
        check_results(segmenter, predictor, task)
    alone = [segmenter(picture).to_json() for picture in pictures()]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: segmenter(picture).to_json(), pictures() * 4))
    assert together == alone * 4 and alone[0] != alone[1]

    run = formats.FORMATS["aot_inductor"].open(exported.folder / "compiled.pt2", "cpu")
    batch = torch.stack([parity_picture((64, 96), seed) for seed in range(2)])
    for plain, strided in zip(run([batch]), run([batch.to(memory_format=torch.channels_last)]), strict=True):
        assert torch.equal(plain, strided)

    with pytest.raises(ValueError, match="was compiled for CPUs, not for device 'cuda'"):
        load(exported.folder, device="cuda")
    host = aot_inductor._host()
    for change, message in (
        ({"capabilities": host["capabilities"][1:]}, f"for CPUs with {host['capabilities'][0]}, which this lacks"),
        ({"torch": "2.0.1"}, f"for torch {host['torch']}, here is 2.0.1: export it on this machine"),
        ({"architecture": "riscv64"}, f"for architecture {host['architecture']}, here is riscv64"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=message):
            patch.setattr(aot_inductor, "_host", lambda change=change: host | change)
            load(exported.folder)


def test_machine_code_needs_a_compiler(monkeypatch, tmp_path):
    def fails():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", fails)
    with pytest.raises(FileNotFoundError, match="install g.., or name one by CXX"):
        export_model(config(), ExportOptions("aot_inductor"), tmp_path / "model")


def test_onnx_has_standard_operators_free_sizes_and_an_integer_twin(make, predictor, monkeypatch, tmp_path):
    onnx = pytest.importorskip("onnx")
    for module in ("onnxruntime", "onnxscript", "onnxslim"):
        pytest.importorskip(module)
    from mask2former.deploy.export.quantization import quantize

    monkeypatch.setattr(formats, "EXTERNAL_DATA_ABOVE", 0)  # as for a model of a gigabyte
    exported = make("onnx", ExportOptions("onnx"))
    path = exported.folder / "model.onnx"
    assert path.stat().st_size < (exported.folder / "model.onnx.data").stat().st_size
    assert "model.onnx.data" in json.loads((exported.folder / "manifest.json").read_text())["files"]
    model = onnx.load(str(path))
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert "GridSample" in {node.op_type for node in model.graph.node}
    check_results(load(exported.folder), predictor, "panoptic")

    dynamic, static = tmp_path / "dynamic.onnx", tmp_path / "static.onnx"
    for copy, samples in ((dynamic, ()), (static, pictures())):
        folder = tmp_path / copy.stem
        shutil.copytree(exported.folder, folder)
        quantize(folder / path.name, samples)
        assert not (folder / "model.onnx.data").exists()
        (folder / path.name).rename(copy)
    kinds = {node.op_type for node in onnx.load(str(dynamic)).graph.node}
    assert "MatMulInteger" in kinds and "ConvInteger" not in kinds
    assert {"MatMulInteger", "QuantizeLinear"} <= {node.op_type for node in onnx.load(str(static)).graph.node}
    for copy in (dynamic, static):  # sums of two products with weights of eight bits overflow without VNNI
        weights = [
            tensor for tensor in onnx.load(str(copy)).graph.initializer if tensor.data_type == onnx.TensorProto.INT8
        ]
        assert max(abs(onnx.numpy_helper.to_array(weight).astype(int)).max() for weight in weights) <= 64


def test_what_is_out_of_bounds_is_not_written(tmp_path, monkeypatch):
    def differs(*args, **kwargs):
        raise exporter.ParityError("the exported model does not give what the model gives")

    monkeypatch.setattr(exporter, "_program", lambda *args, **kwargs: None)
    monkeypatch.setitem(exporter.FORMATS, "torchscript", replace(exporter.FORMATS["torchscript"], write=touch))
    monkeypatch.setattr(exporter, "_finish", differs)
    with pytest.raises(exporter.ParityError, match="does not give"):
        export_model(config(), ExportOptions("torchscript"), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def touch(program, path, task):
    path.write_bytes(b"model")


@pytest.mark.parametrize("worse", [{"most_class_logits": 0.2}, {"masks": 0.9}, {"segments": 0.9}])
def test_every_part_of_a_result_has_its_bound(worse):
    good = {"class_logits": 9.0, "most_class_logits": 0.0, "mask_logits": 0.0, "masks": 1.0, "num_segments": 1}
    good |= {"segments": 1.0}
    bounds = Bounds(logits=0.1, masks=0.99, segments=0.99)
    assert Agreement((64, 64), (64, 64), **good).is_within(bounds)
    assert not Agreement((64, 64), (64, 64), **{**good, **worse}).is_within(bounds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions("coreml"), "format 'coreml' is unknown; choose from torchscript"),
        (ExportOptions("torchscript", "int8"), "torchscript: fp32, fp16, bf16; torch_export"),
        (ExportOptions("torchscript", task="video"), "task 'video' is unknown; choose from panoptic"),
    ],
)
def test_what_cannot_be_exported_is_said(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_model(config(), options, tmp_path / "model")


def test_a_task_that_is_off_is_refused(tmp_path):
    cfg = config("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False)
    with pytest.raises(ValueError, match="no task 'panoptic', only instance, semantic"):
        export_model(cfg, ExportOptions("torchscript"), tmp_path / "model")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"mask2former\[deploy\]"):
        check_format("onnx")


def test_the_command_for_tensorrt_names_all_shapes(tmp_path):
    command = " ".join(tensorrt_command(tmp_path, "fp16"))
    assert "--minShapes=images:1x3x256x256" in command and command.endswith("--fp16")
