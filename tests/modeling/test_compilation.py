"""The network through PyTorch's compiler; "aot_eager" traces everything as "inductor" does, and generates no code."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

from mask2former import MaskFormer
from mask2former.modeling.compilation import compile_network
from tests.tiny_model import RESNET_18, tiny_model, tiny_sample

SMALL: tuple[Any, ...] = (*RESNET_18, "MODEL.MASK_FORMER.DEC_LAYERS", 2)


def _compiled() -> MaskFormer:
    with mock.patch(
        "mask2former.maskformer_model.compile_network", lambda *parts: compile_network(*parts, backend="aot_eager")
    ):
        return tiny_model(*SMALL, "MODEL.COMPILE", True)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def test_compiled_inference_equals_eager_and_serves_other_sizes() -> None:
    eager, compiled = tiny_model(*SMALL).eval(), _compiled().eval()
    num_graphs = []
    for size in ((64, 96), (96, 160)):
        with torch.inference_mode():
            (expected,), (found,) = (model.predict([tiny_sample(size=size)]) for model in (eager, compiled))
        torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.masks.features, expected.masks.features, rtol=1e-4, atol=1e-4)
        num_graphs.append(counters["stats"]["unique_graphs"])
    # Sizes are symbols: only parts whose convolution PyTorch chooses by the size of the map are compiled once more.
    assert 0 < num_graphs[0] <= num_graphs[1] < 2 * num_graphs[0]
    assert not counters["graph_break"]


def test_a_copy_of_a_compiled_model_has_weights_of_its_own() -> None:
    compiled = _compiled().eval()
    assert compiled.backbone._compiled_call_impl is not None
    duplicate = copy.deepcopy(compiled)
    assert duplicate.backbone._compiled_call_impl is None
    assert list(duplicate.state_dict()) == list(tiny_model(*SMALL).state_dict())
