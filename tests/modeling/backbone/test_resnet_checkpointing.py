"""Recomputed blocks of a ResNet: same losses, same gradients, and what cannot be recomputed is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former import MaskFormer
from tests.tiny_model import gradients, tiny_model, tiny_sample


def _model(*overrides: Any) -> MaskFormer:
    """With a ResNet-18."""
    resnet = {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }
    return tiny_model(*(item for pair in resnet.items() for item in pair), *overrides)


def _losses_and_gradients(*overrides: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """The third is how often a residual block ran."""
    model = _model(*overrides).train()
    calls: list[Any] = []
    for stage in model.backbone.stages:
        stage[0].register_forward_pre_hook(lambda *call: calls.append(call))
    losses = model([tiny_sample(2), tiny_sample(1, seed=1)])
    torch.stack(list(losses.values())).sum().backward()
    return losses, gradients(model), len(calls)


def test_recomputed_blocks_change_neither_losses_nor_gradients() -> None:
    losses, kept, calls = _losses_and_gradients()
    losses_again, recomputed, calls_again = _losses_and_gradients("MODEL.RESNETS.USE_CHECKPOINT", True)
    assert (calls, calls_again) == (4, 8)
    for name, value in losses.items():
        assert torch.equal(value, losses_again[name]), name
    assert kept.keys() == recomputed.keys()
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-5, atol=1e-6)


def test_results_are_the_same_where_nothing_is_recomputed() -> None:
    with torch.no_grad():
        results, expected = (
            _model("MODEL.RESNETS.USE_CHECKPOINT", use).eval()([tiny_sample(1)])[0] for use in (True, False)
        )
    assert torch.equal(results["sem_seg"], expected["sem_seg"])


def test_batch_norms_that_learn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MODEL.RESNETS.NORM FrozenBN"):
        _model("MODEL.RESNETS.USE_CHECKPOINT", True, "MODEL.RESNETS.NORM", "BN")


def test_other_backbones_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MODEL.SWIN.USE_CHECKPOINT"):
        tiny_model("MODEL.RESNETS.USE_CHECKPOINT", True)
