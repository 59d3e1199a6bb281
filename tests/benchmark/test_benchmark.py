"""The benchmark: both sides compute the same, and every stage has its figures. Nothing here judges speed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from mask2former.benchmark import STAGES, benchmark, report_table, transformers_config
from mask2former.benchmark.sides import Stopwatch
from mask2former.config import load_config
from tests.tiny_model import tiny_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report():
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    return benchmark(tiny_config("DATASETS.TEST", ()), size=(64, 80), batch_size=2, repeats=2, kept_queries=3)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_script", ROOT / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_sides_compute_the_same_logits(report):
    assert report.why_alone == ""
    assert set(report.deviation) == {"class", "mask"}
    assert max(report.deviation.values()) < 1e-4


@pytest.mark.parametrize("side", ["ours", "transformers"])
def test_every_stage_is_measured_and_none_twice(report, side):
    stages = report.milliseconds[side]
    assert tuple(stages) == STAGES
    for figure in stages.values():
        assert 0 < figure.smallest <= figure.median <= figure.largest
    parts = sum(figure.smallest for name, figure in stages.items() if name != "total")
    assert parts <= stages["total"].largest


def test_the_table_has_a_line_for_every_stage(report):
    lines = report_table(report).splitlines()
    assert "ours" in lines[0] and "transformers" in lines[0] and "2 picture(s)" in lines[0]
    for stage, line in zip(STAGES, lines[1:], strict=False):
        assert line.startswith(stage)


def test_a_backbone_that_transformers_lacks_is_named():
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    cfg = tiny_config("DATASETS.TEST", (), "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.NAME='build_resnet_fpn_backbone'"):
        transformers_config(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
        ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
    ],
)
def test_other_decoders_are_named(key, value):
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    with pytest.raises(ValueError, match=value):
        transformers_config(tiny_config(key, value))


@pytest.mark.parametrize("file", ["coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"])
def test_published_configs_keep_their_sizes(file):
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    config = transformers_config(load_config(ROOT / "configs" / file))
    assert (config.num_queries, config.decoder_layers, config.encoder_layers, config.num_labels) == (100, 10, 6, 133)
    assert config.backbone_config.depths == [3, 4, 6, 3]


def test_stages_add_up_over_calls():
    class Worker:
        def work(self):
            return 1

    worker, stopwatch = Worker(), Stopwatch(torch.device("cpu"))
    stopwatch.watch(worker, "work", "stage")
    assert worker.work() == 1
    once = stopwatch.seconds["stage"]
    worker.work()
    assert stopwatch.seconds["stage"] > once > 0
    stopwatch.times_stages = False
    before = dict(stopwatch.seconds)
    worker.work()
    assert stopwatch.seconds == before


def test_the_command_prints_a_table_and_writes_json(script, tmp_path, capsys):
    file = tmp_path / "figures.json"
    config = ROOT / "configs/digits/panoptic.yaml"
    arguments = [
        "--config-file",
        config,
        "--size",
        64,
        64,
        "--repeats",
        1,
        "--device",
        "cpu",
        "--alone",
        "--json",
        file,
    ]
    assert script.main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in STAGES) and "ratio" not in printed
    content = json.loads(file.read_text())
    assert content["settings"]["size"] == [64, 64]
    assert set(content["milliseconds"]) == {"ours"} and set(content["milliseconds"]["ours"]) == set(STAGES)


def test_digits_are_measured_alone_with_the_reason(script, capsys):
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    config = str(ROOT / "configs/digits/panoptic.yaml")
    assert script.main(["--config-file", config, "--size", "64", "64", "--repeats", "1", "--device", "cpu"]) == 0
    assert "transformers was left out: " in capsys.readouterr().out
