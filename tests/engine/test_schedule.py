"""Learning rates over a run, as published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mask2former.config import load_config
from mask2former.engine import Trainer
from tests.golden import CONFIGS

COCO = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
ADE20K = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"


def _rates(path: str, *overrides: str, steps: int) -> list[float]:
    """The rate that each step of a run uses."""
    cfg = load_config(CONFIGS / path, overrides)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_poly_falls_with_the_published_exponent_and_without_warm_up() -> None:
    expected = [1e-4 * (1 - step / 20) ** 0.9 for step in range(20)]
    assert _rates(ADE20K, "SOLVER.MAX_ITER", "20", steps=20) == pytest.approx(expected)


def test_steps_divide_by_ten_and_the_published_warm_up_does_nothing() -> None:
    rates = _rates(COCO, "SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "(12, 16)", steps=20)
    assert rates == pytest.approx([1e-4] * 12 + [1e-5] * 4 + [1e-6] * 4)
