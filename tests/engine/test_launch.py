"""Processes: torchrun with gloo, its elastic restart, and what --num-gpus refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from mask2former.engine import argument_parser, launch
from mask2former.engine.launch import _is_restart_of_this_launch
from tests.engine.tiny import PLAIN_SGD, same_points, tiny_config
from tests.engine.two_ranks import STEPS, HalfEmptyTrainer

ROOT = Path(__file__).parents[2]


def test_two_ranks_that_crash_and_restart_end_with_the_weights_of_one_process(tmp_path, digits_root, monkeypatch):
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "-m", "tests.engine.two_ranks", str(tmp_path / "two")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = torch.load(tmp_path / "two" / "result.pth", weights_only=True)
    assert (result["world_size"], result["resumed"]) == (2, True)

    monkeypatch.setattr(torch, "rand", same_points)
    alone = HalfEmptyTrainer(tiny_config(tmp_path / "one", **STEPS, **PLAIN_SGD))
    alone.train()
    losses = {name: value for name, (value, _) in alone.storage.latest().items() if "loss" in name}
    assert result["losses"] == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(result["model"], dict(alone.model.state_dict()), rtol=1e-4, atol=1e-6)


def _is_restart(monkeypatch, folder, *, run_id="none", restarts):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    return _is_restart_of_this_launch(str(folder))


@pytest.mark.parametrize("run_id", ["none", "job7"])
def test_only_a_restart_of_the_launch_that_began_in_the_folder_resumes(tmp_path, monkeypatch, run_id):
    assert not _is_restart(monkeypatch, tmp_path, run_id=run_id, restarts=0)
    (tmp_path / "last_checkpoint").touch()
    assert _is_restart(monkeypatch, tmp_path, run_id=run_id, restarts=1)
    # Another launch, whose first attempt refused the folder:
    assert not _is_restart(monkeypatch, tmp_path, run_id="job8", restarts=0)
    assert not _is_restart(monkeypatch, tmp_path, run_id="job8", restarts=1)


@pytest.mark.parametrize("flags", [["--num-gpus", "64"], ["--num-machines", "2"]])
def test_more_processes_than_devices_are_refused_with_the_way_out(tmp_path, flags):
    with pytest.raises(SystemExit, match="this machine has 0 CUDA devices .* torchrun --nproc-per-node 2"):
        launch(lambda cfg, args: None, tiny_config(tmp_path), argument_parser().parse_args(flags))


def test_one_process_is_called_directly(tmp_path):
    cfg = tiny_config(tmp_path)
    assert launch(lambda cfg, args: (cfg, args.num_gpus), cfg, argument_parser().parse_args([])) == (cfg, 1)


@pytest.mark.parametrize(("signal", "expected"), [(None, SystemExit), ("SIGKILL", ProcessExitedException)])
def test_a_process_that_said_why_it_ended_gets_no_traceback_on_top(tmp_path, monkeypatch, signal, expected):
    def end(*_args, **_kwargs):
        raise ProcessExitedException("process 1 terminated", 1, 4242, exit_code=1, signal_name=signal)

    monkeypatch.setattr(sys.modules["mask2former.engine.launch"], "spawn", end)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = tiny_config(tmp_path)
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(expected) as stopped:
        launch(lambda cfg, args: None, cfg, argument_parser().parse_args(["--num-gpus", "2"]))
    assert signal or stopped.value.code == 1
