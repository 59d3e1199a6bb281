"""The script that times the operator: every backend gets its lines. Nothing here judges speed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from mask2former.modeling.pixel_decoder.ops import available_backends, backends

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ms_deform_attn.py"


def load_script():
    spec = importlib.util.spec_from_file_location("ms_deform_attn_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_every_backend_is_timed_in_both_directions(monkeypatch, capsys) -> None:
    monkeypatch.setenv(backends.VARIABLE, "reference")  # the script changes it; restored afterwards
    script = load_script()
    threads = torch.get_num_threads()
    try:
        monkeypatch.setattr(script, "copy_bandwidth", lambda device: 1e9)  # half a GiB is too much for a test
        assert script.main(["--sizes", "40x50", "64x32", "--dtypes", "float32", "bfloat16", "--repeats", "2"]) == 0
    finally:
        backends.forget_choices()
    assert torch.get_num_threads() == threads
    lines = capsys.readouterr().out.splitlines()
    cases = [line for line in lines if "levels" in line]
    assert cases[0] == "40 x 50, levels ((2, 2), (3, 4), (5, 7)), batch 1, float32"
    assert len(cases) == 4
    here = {
        name for name in available_backends() if name in backends.PLAIN or "cpu" in backends.backend(name).device_types
    }
    for direction in ("forward ", "forward + backward"):
        timed = [line.removeprefix(direction).split()[0] for line in lines if line.startswith(direction)]
        assert here <= set(timed)


def test_the_least_traffic_is_every_tensor_once() -> None:
    script = load_script()
    inputs = script.make_inputs(((2, 3),), 2, torch.device("cpu"), torch.float32)
    value, offsets, logits = 2 * 6 * 8 * 32 * 4, 2 * 6 * 8 * 4 * 2 * 4, 2 * 6 * 8 * 4 * 4
    centers = 6 * 2 * 4  # shared by levels and pictures
    assert script.least_bytes(inputs, False) == 2 * value + centers + offsets + logits
    assert script.least_bytes(inputs, True) == 5 * value + 2 * centers + 3 * offsets + 3 * logits
