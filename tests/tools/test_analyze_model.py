"""tools/analyze_model.py: every task prints, on a picture of a given size as well as on pictures of a data set."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from mask2former.config import load_config
from tests.engine.tiny import CONFIGS, arguments

ROOT = Path(__file__).parents[2]
CONFIG = str(CONFIGS / "digits/panoptic.yaml")


@pytest.fixture
def analyze(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main = runpy.run_path("tools/analyze_model.py", run_name="analyze_model")["main"]

    def run(*options: str) -> str:
        main(["--config-file", CONFIG, *options, *arguments(tmp_path)])
        return capsys.readouterr().out

    return run


def test_all_tasks_print_for_one_picture_of_a_given_size(analyze):
    printed = analyze("--tasks", "flop", "activation", "parameter", "structure", "--input-size", "64", "96")
    for expected in ("sem_seg_head.pixel_decoder", "deformable attention", "million activations", "(backbone): ResNet"):
        assert expected in printed
    assert "total of 1 picture(s)" in printed and "±" not in printed


def test_the_fixed_size_is_the_side_of_the_training_crop(analyze):
    assert analyze("--tasks", "flop", "--use-fixed-input-size") == analyze(
        "--tasks", "flop", "--input-size", "64", "64"
    )


def test_a_crop_that_is_a_share_of_the_picture_is_no_fixed_size():
    crop_size = runpy.run_path(str(ROOT / "tools/analyze_model.py"), run_name="analyze_model")["crop_size"]
    cfg = load_config(CONFIGS / "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
    with pytest.raises(ValueError, match=r"SIZE\[0\]=0\.9.* a share of the picture .*give --input-size"):
        crop_size(cfg)


def test_weights_are_not_downloaded_to_be_counted(analyze, monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: pytest.fail("a download"))
    example = str(CONFIGS / "coco/panoptic-segmentation/timm/mask2former_efficientnet_b0_bs16_50ep.yaml")
    small = ("MODEL.TIMM.NAME", "test_efficientnet")
    printed = analyze("--config-file", example, "--tasks", "parameter", "--input-size", "32", "32", *small)
    assert "backbone.model" in printed


def test_per_pixel_baselines_are_counted(analyze):
    baseline = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead")
    decoder = ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder")
    assert "sem_seg_head.predictor" in analyze("--tasks", "flop", "--input-size", "33", "48", *baseline, *decoder)


def test_counts_are_averaged_over_pictures_of_the_test_set(analyze, digits_root):
    assert "total of 2 picture(s)" in analyze("--tasks", "activation", "-n", "2")


def test_no_pictures_are_refused(analyze, capsys):
    with pytest.raises(SystemExit):
        analyze("--tasks", "flop", "-n", "0")
    assert "--num-inputs 0 must be at least 1" in capsys.readouterr().err
