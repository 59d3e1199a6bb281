"""The number format of the network in inference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mask2former.modeling.inference_precision import inference_dtype
from tests.tiny_model import tiny_model, tiny_sample

KEY = "MODEL.MASK_FORMER.TEST.PRECISION"


@torch.no_grad()
def _network_dtype(model: torch.nn.Module, samples: list[dict[str, Any]]) -> torch.dtype:
    """Of the per-pixel embeddings while the model predicts."""
    dtypes = []
    layer = model.sem_seg_head.pixel_decoder.mask_features
    hook = layer.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    model.eval().predict(samples)
    hook.remove()
    return dtypes[0]


@pytest.fixture(autouse=True)
def cpu_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CPU without it the key makes float32; everything still runs there, by PyTorch's slow imitation."""
    monkeypatch.setattr("mask2former.modeling.inference_precision.cpu_has_bfloat16", lambda: True)


def test_the_key_chooses_the_precision_of_the_network() -> None:
    assert _network_dtype(tiny_model(KEY, "fp32"), [tiny_sample()]) == torch.float32
    assert _network_dtype(tiny_model(KEY, "bf16"), [tiny_sample()]) == torch.bfloat16


def test_fp32_leaves_the_precision_to_the_caller() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _network_dtype(tiny_model(), [tiny_sample()]) == torch.bfloat16


def test_results_are_float32_and_close_in_every_precision() -> None:
    plain, half = tiny_model().eval(), tiny_model(KEY, "bf16").eval()
    with torch.no_grad():
        (expected,), (found,) = (model.predict([tiny_sample()]) for model in (plain, half))
        results = half([tiny_sample()])[0]
    assert found.class_logits.dtype == found.masks.embeddings.dtype == found.masks.features.dtype == torch.float32
    assert results["sem_seg"].dtype == results["instances"].scores.dtype == torch.float32
    # Queries of fresh weights are no measure: a pixel that changes sides changes what they attend to.
    error = (found.masks.features - expected.masks.features).norm() / expected.masks.features.norm()
    assert 0 < error < 0.03


def test_training_does_not_read_the_key() -> None:
    losses = [tiny_model(KEY, precision).train()([tiny_sample()]) for precision in ("fp32", "bf16")]
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


@pytest.mark.parametrize(
    ("precision", "message"),
    [("half", "PRECISION='half' is unknown; choose from: fp32, bf16, fp16"), ("fp16", "needs a GPU.*bf16 or fp32")],
)
def test_precisions_that_cannot_be_had_are_refused(precision: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(KEY, precision)


def test_a_gpu_has_all_precisions() -> None:
    assert [inference_dtype(name, "cuda") for name in ("fp32", "bf16", "fp16")] == [
        None,
        torch.bfloat16,
        torch.float16,
    ]


def test_a_cpu_without_bfloat16_computes_in_float32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mask2former.modeling.inference_precision.cpu_has_bfloat16", lambda: False)
    assert inference_dtype("bf16", "cpu") is None
    assert "PRECISION='bf16' computes in float32" in caplog.text
    assert inference_dtype("bf16", "cuda") == torch.bfloat16
