"""The command line of train_net.py: flags that scripts of other people use."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

from mask2former.engine import argument_parser

ROOT = Path(__file__).parents[2]


def test_the_flags_and_their_defaults_are_those_of_detectron2():
    args = argument_parser().parse_args([])
    assert args.dist_url.startswith("tcp://127.0.0.1:")
    del args.dist_url
    assert vars(args) == {
        "config_file": "",
        "resume": False,
        "eval_only": False,
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "opts": [],
    }


def test_key_value_pairs_may_follow_the_flags():
    args = argument_parser().parse_args(
        ["--config-file", "a.yaml", "--resume", "--eval-only", "--num-gpus", "8", "--num-machines", "2"]
        + ["--machine-rank", "1", "--dist-url", "tcp://host:1", "MODEL.WEIGHTS", "b.pth", "SEED", "1"]
    )
    assert (args.config_file, args.resume, args.eval_only) == ("a.yaml", True, True)
    assert (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url) == (8, 2, 1, "tcp://host:1")
    assert args.opts == ["MODEL.WEIGHTS", "b.pth", "SEED", "1"]


def test_the_script_is_a_shell_of_at_most_80_lines_that_imports_without_side_effects(capsys):
    assert len((ROOT / "train_net.py").read_text().splitlines()) <= 80
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert callable(script.main) and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "absent.yaml"], "config file 'absent.yaml' does not exist"),
        ([], "no config file is given: add --config-file"),
        (
            ["--config-file", "configs/digits/panoptic.yaml", "SEEED", "1"],
            "overrides (KEY VALUE ...): Non-existent key",
        ),
        (
            ["--config-file", "configs/digits/panoptic.yaml", "MODEL.BACKBONE.NAME", "nope"],
            "MODEL.BACKBONE.NAME='nope' is unknown; choose from: D2SwinTransformer",
        ),
        (
            ["--config-file", "configs/digits/panoptic.yaml", "MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
            "MODEL.SEM_SEG_HEAD.NAME='MaskFormerHead' cannot serve MODEL.META_ARCHITECTURE='SemanticSegmentor'",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path("train_net.py", run_name="__main__")
    assert str(stopped.value).startswith(f"train_net.py: error: {message}") and "\n" not in str(stopped.value)
