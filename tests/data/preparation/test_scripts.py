"""The command lines datasets/prepare_*.py."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from tests.data.preparation.trees import read_picture, write_picture

SCRIPTS = {path.name: path for path in Path("datasets").glob("prepare_*.py") if path.name != "prepare_digits.py"}
PUBLISHED = {
    "prepare_ade20k_sem_seg.py",
    "prepare_ade20k_ins_seg.py",
    "prepare_ade20k_pan_seg.py",
    "prepare_ade20k_full_sem_seg.py",
    "prepare_coco_semantic_annos_from_panoptic_annos.py",
    "prepare_coco_stuff_10k_v1.0_sem_seg.py",
}


def run(name: str, *arguments: str) -> None:
    runpy.run_path(str(SCRIPTS[name]))["main"](list(arguments))


def test_the_published_scripts_have_their_names():
    assert PUBLISHED | {"prepare_cityscapes.py", "prepare_mapillary_vistas.py"} == SCRIPTS.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_does_and_what_it_takes(name, capsys):
    with pytest.raises(SystemExit) as end:
        run(name, "--help")
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--root" in said and "--num-workers" in said


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_missing_data_set_ends_a_script_with_one_sentence_and_the_tree(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        run(name)
    assert f"{tmp_path}" in end.value.code and "does not exist" in end.value.code


def test_a_script_prepares_the_splits_that_were_asked_for(tmp_path, capsys):
    folder = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        write_picture(folder / f"annotations/{part}/x.png", np.array([[0, 1, 150]]))
    arguments = ("prepare_ade20k_sem_seg.py", "--root", str(tmp_path), "--splits", "val", "--num-workers", "1")
    run(*arguments)
    assert read_picture(folder / "annotations_detectron2/validation/x.png") == [[255, 0, 149]]
    assert not (folder / "annotations_detectron2/training").exists()
    run(*arguments)
    assert capsys.readouterr().out.splitlines() == [
        "ADE20K semantic: 1 written, 0 already there",
        "ADE20K semantic: 0 written, 1 already there",
    ]


def test_ctrl_c_ends_a_script_without_a_traceback(monkeypatch):
    script = runpy.run_path(str(SCRIPTS["prepare_ade20k_sem_seg.py"]))
    monkeypatch.setitem(script["main"].__globals__, "prepare_ade20k_semantic", _interrupt)
    with pytest.raises(SystemExit, match="interrupted; finished files stay, the same command continues"):
        script["main"]([])


def _interrupt(*_, **__):
    raise KeyboardInterrupt
