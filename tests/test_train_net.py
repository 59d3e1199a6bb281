"""The command line from end to end: train, evaluate, refuse to overwrite, say what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.tiny import arguments

ROOT = Path(__file__).parents[1]


TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def _train_net(*parts, root, launcher=()):
    return subprocess.run(
        [sys.executable, *launcher, "train_net.py", "--config-file", "configs/digits/panoptic.yaml", *parts],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(root)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_root):
    output = tmp_path_factory.mktemp("run")
    # Enough steps for one line on the console.
    done = _train_net(*arguments(output, SOLVER__MAX_ITER=20, SOLVER__BASE_LR=0.002), root=digits_root)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout


def test_a_run_leaves_checkpoint_config_log_figures_and_events(finished):
    output, _ = finished
    names = {path.name for path in output.iterdir()}
    assert {"model_final.pth", "last_checkpoint", "config.yaml", "log.txt", "metrics.json", "inference"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)


def test_the_console_shows_loss_rate_time_memory_and_results(finished):
    _, console = finished
    (line,) = [line for line in console.splitlines() if "step 20/20" in line]
    for part in ("loss ", "(ce ", " mask ", " dice ", "  lr ", " s/step (data ", "  eta 0:00:00", "  memory ", " MiB"):
        assert part in line, part
    for task in ("panoptic_seg  PQ ", "segm          AP ", "sem_seg       mIoU "):
        assert task in console, task
    assert len(console.splitlines()) < 120, "a page or two, not a flood"


def test_one_evaluation_measures_all_three_tasks(finished):
    output, _ = finished
    results = json.loads((output / "inference" / "metrics.json").read_text())["digits_panoptic_val"]
    assert set(results) == {"panoptic_seg", "bbox", "segm", "sem_seg"}
    assert 0 <= results["panoptic_seg"]["PQ"] <= 100 and 0 < results["sem_seg"]["mIoU"] <= 100
    last_line = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert last_line["sem_seg/mIoU"] == results["sem_seg"]["mIoU"]


def test_eval_only_repeats_the_figures_of_training(finished, tmp_path, digits_root):
    output, _ = finished
    weights = output / "model_final.pth"
    done = _train_net("--eval-only", *arguments(tmp_path, MODEL__WEIGHTS=weights), root=digits_root)
    assert done.returncode == 0, done.stdout + done.stderr
    read = [json.loads((folder / "inference" / "metrics.json").read_text()) for folder in (output, tmp_path)]
    assert read[0] == read[1]


def test_a_second_run_into_the_folder_is_refused_and_touches_nothing(finished, digits_root):
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    done = _train_net(*arguments(output, SEED=4), root=digits_root)
    assert done.returncode != 0 and "add --resume to continue that run" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.mark.parametrize("flags", [[], ["--eval-only"]])
def test_weights_that_do_not_fit_are_refused_in_one_sentence(finished, tmp_path, digits_root, flags):
    weights = finished[0] / "model_final.pth"
    other = arguments(tmp_path / "run", MODEL__WEIGHTS=weights, MODEL__MASK_FORMER__DEC_LAYERS=3)
    done = _train_net(*flags, *other, root=digits_root)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("train_net.py: error: ") :]
    assert message.startswith(f"train_net.py: error: checkpoint '{weights}' is of another architecture")
    assert len(message.splitlines()) == 1


def test_two_processes_say_once_that_a_data_set_is_missing(tmp_path):
    done = _train_net(*arguments(tmp_path / "run"), root=tmp_path, launcher=TWO_PROCESSES)
    assert done.returncode == 1
    message = "train_net.py: error: data set 'digits_panoptic_val': "
    assert done.stderr.count(message) == 1, done.stderr
    assert 'File "train_net.py"' not in done.stderr, "torchrun adds a traceback of its own, but ours has none"


def test_an_error_in_the_middle_of_training_keeps_its_traceback(tmp_path, digits_root):
    shutil.copytree(digits_root, tmp_path / "data")
    for picture in (tmp_path / "data" / "digits" / "train").glob("*"):
        picture.write_bytes(picture.read_bytes()[:100])
    done = _train_net(*arguments(tmp_path / "run"), root=tmp_path / "data")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "damaged or cut off" in done.stderr
    assert "train_net.py: error" not in done.stderr
