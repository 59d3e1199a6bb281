"""The benchmark: both sides compute the same, and every stage has its figures. Nothing here judges speed."""

from __future__ import annotations

import importlib.util
import json
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from mask2former.benchmark import (
    INFERENCE_STAGES,
    TRAINING_STAGES,
    Workload,
    benchmark,
    check_device,
    report_table,
    save_chart,
)
from mask2former.benchmark.memory import MemoryMeter
from mask2former.benchmark.meter import OwnProcess
from mask2former.benchmark.stopwatch import Stopwatch
from mask2former.benchmark.workload import training_samples
from mask2former.config import load_config
from tests.tiny_model import tiny_config

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "configs/digits/panoptic.yaml"
TINY = {"size": (64, 80), "batch_size": 2, "num_targets": 3, "kept_queries": 3}


def measured(training=False, **options):
    workload = Workload(training=training, **TINY)
    return benchmark(tiny_config("DATASETS.TEST", ()), workload, repeats=2, own_processes=False, **options)


@pytest.fixture(scope="module")
def inference():
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    return measured()


@pytest.fixture(scope="module")
def training():
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    return measured(training=True)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_script", ROOT / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_sides_compute_the_same_logits(inference):
    assert inference.why_alone == ""
    assert set(inference.deviation) == {"class logits", "mask logits"}
    assert max(inference.deviation.values()) < 1e-4


def test_both_sides_compute_in_the_precision_asked_for(inference):
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    cfg = tiny_config("DATASETS.TEST", ())
    for is_training in (False, True):
        workload = Workload((64, 80), training=is_training, num_targets=3, precision="bf16")
        report = benchmark(cfg, workload, repeats=1, own_processes=False)
        assert set(report.sides) == {"ours", "transformers"}
        assert max(report.deviation.values()) < 0.2
        if not is_training:
            assert report.deviation["mask logits"] > 100 * inference.deviation["mask logits"]


def test_half_precision_that_needs_a_gpu_is_refused_without_one():
    for is_training in (False, True):
        with pytest.raises(ValueError, match="fp16"):
            benchmark(tiny_config(), Workload((64, 80), training=is_training, precision="fp16"), own_processes=False)


def test_both_sides_compute_the_same_losses_up_to_their_random_points(training):
    assert training.why_alone == ""
    assert training.deviation["loss"] < 0.05


@pytest.mark.parametrize("side", ["ours", "transformers"])
@pytest.mark.parametrize(("kind", "names"), [("inference", INFERENCE_STAGES), ("training", TRAINING_STAGES)])
def test_every_stage_is_measured_and_none_twice(request, kind, names, side):
    figures = request.getfixturevalue(kind).sides[side]
    assert tuple(figures.milliseconds) == names
    for figure in figures.milliseconds.values():
        assert 0 < figure.smallest <= figure.median <= figure.largest
    whole = {"pre-processing", "network", "post-processing"} if kind == "inference" else set(names) - {"total"}
    parts = sum(figures.milliseconds[name].smallest for name in whole)
    assert parts <= figures.milliseconds["total"].largest
    assert figures.images_per_second.median > 0 and figures.parameters > 0 and figures.gflops > 0


def test_the_network_is_the_sum_of_its_parts_and_of_what_joins_them(inference):
    stages = inference.sides["ours"].milliseconds
    parts = sum(stages[name].smallest for name in ("backbone", "pixel decoder", "decoder"))
    assert parts < stages["network"].largest


def test_both_sides_have_the_same_parameters(inference, training):
    for report in (inference, training):
        ours, theirs = (report.sides[name].parameters for name in ("ours", "transformers"))
        assert theirs == pytest.approx(ours, rel=0.01)  # transformers keeps a norm that it does not use


@pytest.mark.parametrize(("kind", "names"), [("inference", INFERENCE_STAGES), ("training", TRAINING_STAGES)])
def test_the_table_has_a_line_for_every_figure(request, kind, names):
    lines = report_table(request.getfixturevalue(kind)).splitlines()
    assert "ours" in lines[0] and "transformers" in lines[0] and "2 picture(s)" in lines[0]
    assert ("3 targets" in lines[0]) == (kind == "training")
    expected = (*names, "images/s", "peak memory", "parameters", "network GFLOPs", "largest relative difference")
    for name, line in zip(expected, lines[1:], strict=True):
        assert line.strip().startswith(name)


def test_without_transformers_ours_is_measured_alone():
    report = measured(with_transformers=False)
    assert set(report.sides) == {"ours"} and report.deviation == {}
    assert "ratio" not in report_table(report)


def test_what_transformers_cannot_mirror_is_measured_alone_with_the_reason():
    pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    report = benchmark(load_config(DIGITS), Workload((64, 64)), repeats=1, own_processes=False)
    assert set(report.sides) == {"ours"}
    assert report.why_alone in report_table(report) and "MODEL." in report.why_alone


def test_stages_add_up_over_calls_and_inner_ones_count_for_themselves():
    class Worker:
        def inner(self):
            return 1

        def outer(self):
            return self.inner()

    worker, stopwatch = Worker(), Stopwatch(torch.device("cpu"))
    stopwatch.watch(worker, "inner", "inner")
    stopwatch.watch(worker, "outer", "outer")
    assert worker.outer() == 1
    once = dict(stopwatch.seconds)
    assert set(once) == {"inner", "outer"} and min(once.values()) > 0
    worker.inner()
    assert stopwatch.seconds["inner"] > once["inner"] and stopwatch.seconds["outer"] == once["outer"]
    stopwatch.seconds = {}
    with stopwatch.as_a_whole(), stopwatch.stage("all"):
        assert "outer" not in vars(worker)
        worker.outer()
    assert set(stopwatch.seconds) == {"all"}
    worker.outer()
    assert set(stopwatch.seconds) == {"all", "inner", "outer"}


def test_processor_time_passes_only_while_something_is_computed():
    wall, processor = Stopwatch(torch.device("cpu")), Stopwatch(torch.device("cpu"), processor_time=True)
    with wall.stage("asleep"), processor.stage("asleep"):
        time.sleep(0.05)
    assert wall.seconds["asleep"] >= 0.05 > processor.seconds["asleep"]


def test_memory_is_what_was_needed_since_the_restart_beyond_the_start():
    meter = MemoryMeter(torch.device("cpu"))
    if meter.peak_mib() is None:
        pytest.skip("this system does not tell the peak of a process")
    torch.ones(100 * 2**18)  # 100 MiB, freed at once
    assert 90 < meter.peak_mib() < 150
    meter.restart()
    assert meter.peak_mib() < 50
    kept = torch.ones(100 * 2**18)
    meter.restart()
    assert 90 < meter.peak_mib() < 150, len(kept)


def test_samples_have_as_many_targets_as_asked():
    first, second = training_samples(Workload((32, 40), batch_size=2, training=True, num_targets=7), num_classes=5)
    assert first["instances"].gt_masks.shape == (7, 32, 40) and first["instances"].gt_masks.dtype == torch.bool
    assert 0 <= first["instances"].gt_classes.min() and first["instances"].gt_classes.max() < 5
    assert not torch.equal(first["image"], second["image"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (0, 64)}, "--size"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"num_targets": -1}, "--targets -1"),
        ({"precision": "fp8"}, "'fp8' is unknown; choose from: fp32, bf16, fp16"),
    ],
)
def test_impossible_workloads_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Workload(**{"size": (64, 64), **values})


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:0", f"cuda:{torch.cuda.device_count()}"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"--device '{name}' is"):
        check_device(name)


def test_no_repetition_is_an_error():
    with pytest.raises(ValueError, match="--repeats 0"):
        benchmark(tiny_config(), Workload((64, 64)), repeats=0)


@pytest.mark.parametrize("is_training", [False, True])
def test_a_model_without_masks_of_queries_is_named(is_training):
    config = ROOT / "configs/ade20k-150/per_pixel_baseline_R50_bs16_160k.yaml"
    cfg = load_config(config, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18"])
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    with pytest.raises(ValueError, match="MODEL.META_ARCHITECTURE='SemanticSegmentor'"):
        benchmark(cfg, Workload((64, 64), training=is_training), own_processes=False)


@pytest.fixture
def run(script, monkeypatch):
    """Runs the command in this process."""
    monkeypatch.setattr(script, "benchmark", partial(benchmark, own_processes=False))
    return lambda *arguments: script.main([str(argument) for argument in arguments])


def test_the_command_prints_a_table_for_every_combination_and_writes_figures_and_chart(run, tmp_path, capsys):
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.png"
    arguments = ["--config-file", DIGITS, "--training", "--size", 64, 64, "--batch-size", 1, 2, "--targets", 2]
    arguments += ["--processor-time", "--repeats", 1, "--device", "cpu", "--alone", "--json", figures, "--chart", chart]
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n{stage} ") == 2 for stage in TRAINING_STAGES)
    content = json.loads(figures.read_text())
    assert set(content) == {"config_file", "opts", "reports"}
    assert [report["settings"]["batch_size"] for report in content["reports"]] == [1, 2]
    for report in content["reports"]:
        assert set(report) == {"settings", "sides", "deviation", "why_alone"}
        assert report["settings"]["size"] == [64, 64] and report["settings"]["num_targets"] == 2
        assert set(report["sides"]) == {"ours"}
        stages = report["sides"]["ours"]["milliseconds"]
        assert set(stages) == set(TRAINING_STAGES)
        assert set(stages["total"]) == {"median", "smallest", "largest"}
    with Image.open(chart) as picture:
        assert picture.format == "PNG" and picture.width > 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device 'tpu' is unknown"),
        (["--batch-size", 1, 0], "--batch-size 0 must be at least 1"),
        (["--threads", 0], "--threads 0 must be at least 1"),
        (["--chart", "chart.xyz"], "--chart 'chart.xyz' must end in one of"),
        (["--json", "absent/figures.json"], "the folder of 'absent/figures.json' does not exist"),
        (["--config-file", "absent.yaml"], "config file 'absent.yaml' does not exist"),
    ],
)
def test_the_command_names_what_cannot_be_before_it_measures(run, arguments, message, capsys):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(*arguments)
    assert capsys.readouterr().out == ""


def test_a_chart_has_bars_for_every_workload_and_side(inference, training, tmp_path):
    for report in (inference, training):
        one, two = tmp_path / "one.png", tmp_path / "two.png"
        save_chart([report], one, "title")
        save_chart([report, report], two, "title")
        with Image.open(one) as short, Image.open(two) as tall:
            assert tall.height > short.height


def test_a_side_in_its_own_process_answers_and_its_errors_are_raised_here():
    with OwnProcess(load_config(DIGITS, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]), Workload((64, 64))) as side:
        assert {"backbone", "post-processing", "total"} <= set(side("seconds"))
        assert side("memory_mib") is None or side("memory_mib") > 0
        with pytest.raises(RuntimeError, match="absent"):
            side("save_facts", Path("absent") / "folder" / "facts.pt")
