"""The digits video config from clips to AP: in one process, in two, and together with pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mask2former.engine import Trainer, evaluate
from tests.engine.tiny import arguments, tiny_config

pytestmark = pytest.mark.usefixtures("digits_video_root")

ROOT = Path(__file__).parents[2]
TINY = {"MODEL__WEIGHTS": "", "SOLVER__MAX_ITER": 2}


def read_results(output: Path) -> tuple[dict, list]:
    """The figures of the validation clips, and the tracks that were submitted."""
    figures = json.loads((output / "inference" / "metrics.json").read_text())["digits_video_val"]["segm"]
    return figures, json.loads((output / "inference" / "results.json").read_text())


def test_two_ranks_train_and_evaluate_as_one_process_would(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "train_net.py", "--config-file", "configs/digits/video.yaml"]
        + arguments(tmp_path / "two", **TINY),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 process(es) on cpu" in done.stdout
    figures, tracks = read_results(tmp_path / "two")
    assert {"AP", "AP50", "AP75", "AR1", "AR10"} <= figures.keys()
    assert {track["video_id"] for track in tracks} == {1, 2}, "one video was each rank's"

    weights = str(tmp_path / "two" / "model_final.pth")
    evaluate(tiny_config(tmp_path / "one", "video", **{**TINY, "MODEL__WEIGHTS": weights}))
    figures_of_one, tracks_of_one = read_results(tmp_path / "one")
    assert figures == pytest.approx(figures_of_one, nan_ok=True)
    assert [len(track["segmentations"]) for track in tracks] == [len(t["segmentations"]) for t in tracks_of_one]


def test_videos_and_pictures_train_in_one_loader(tmp_path):
    cfg = tiny_config(tmp_path, "video_joint", **TINY, DATASETS__TEST=(), SOLVER__IMS_PER_BATCH=4)
    loader = iter(Trainer.build_train_loader(cfg, seed=0))
    batches = [next(loader) for _ in range(6)]
    kinds = {"video_id" in sample for batch in batches for sample in batch}
    assert kinds == {True, False}
    assert {len(sample["image"]) for batch in batches for sample in batch} == {cfg.INPUT.SAMPLING_FRAME_NUM}
    trainer = Trainer(cfg)
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.storage.latest()["total_loss"][0]))


def test_video_configs_that_name_no_mapper_take_both_kinds(tmp_path):
    cfg = tiny_config(tmp_path, "video", **TINY)
    assert cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_semantic", "as in the published files"
    (batch,) = [next(iter(Trainer.build_train_loader(cfg, seed=0)))]
    assert all("video_id" in sample and len(sample["image"]) == 2 for sample in batch)


def test_pictures_with_other_classes_than_the_videos_are_refused_with_the_classes(tmp_path):
    names = ("digits_video_train", "digits_panoptic_train")
    cfg = tiny_config(tmp_path, "video", **TINY, DATASETS__TRAIN=names)
    with pytest.raises(ValueError, match="differ in stuff_classes, .*only digits_panoptic_train has digit_0, .*"):
        Trainer.build_train_loader(cfg, seed=0)
