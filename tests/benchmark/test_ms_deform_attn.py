"""The script that times the operator: every backend gets its lines. Nothing here judges speed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from mask2former.modeling.pixel_decoder.ops import available_backends, backends

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ms_deform_attn.py"


def test_every_backend_is_timed_in_both_directions(monkeypatch, capsys) -> None:
    monkeypatch.setenv(backends.VARIABLE, "reference")  # the script changes it; restored afterwards
    spec = importlib.util.spec_from_file_location("ms_deform_attn_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads = torch.get_num_threads()
    try:
        assert script.main(["--size", "40", "50", "--repeats", "2"]) == 0
    finally:
        backends.forget_choices()
    assert torch.get_num_threads() == threads
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("levels ((2, 2), (3, 4), (5, 7))")
    for direction in ("forward ", "forward + backward"):
        timed = [line.removeprefix(direction).split()[0] for line in lines[1:] if line.startswith(direction)]
        assert set(available_backends()) <= set(timed)
