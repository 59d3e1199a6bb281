"""One step: skipping what is not finite, accumulating micro-batches, precision."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from mask2former.engine.train_loop import MAX_SKIPPED_IN_A_ROW, TrainLoop


class Line(nn.Module):
    """Loss = mean of (weight * value)^2 over the joined batch; a sample's value may be anything."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen_dtype = None

    def loss_normalizer(self, micro_batches):
        return sum(len(batch) for batch in micro_batches)

    def forward(self, batch, normalizer=None):
        values = torch.tensor([sample["value"] for sample in batch])
        self.seen_dtype = torch.matmul(torch.ones(1, 1), self.weight.reshape(1, 1)).dtype
        return {"loss_ce": ((self.weight * values) ** 2).sum() / (normalizer or len(batch))}


class MeanLine(Line):
    """Knows nothing of normalizers, like Detectron2's own models."""

    loss_normalizer = None

    def forward(self, batch):
        return super().forward(batch)


class Root(nn.Module):
    """A finite loss (0) whose gradient is infinite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return {"loss_ce": self.weight.sqrt()}


def _batch(*values):
    return [{"file_name": f"picture_{value}.jpg", "value": float(value)} for value in values]


def _loop(model, batches, **arguments):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainLoop(
        model=model,
        optimizer=optimizer,
        clip_gradients=lambda parameters: nn.utils.get_total_norm([parameter.grad for parameter in parameters]),
        seed=0,
        **arguments,
    )
    loop.start(batches)
    return loop


def _run(loop, num_steps):
    with EventStorage() as storage:
        for loop.iter in range(num_steps):
            storage.iter = loop.iter
            loop.run_step()
    return storage


def test_a_step_with_a_nan_loss_changes_nothing_is_counted_and_its_images_are_named(caplog):
    model = Line()
    loop = _loop(model, [_batch(math.nan, 1), _batch(1)])
    with caplog.at_level(logging.WARNING):
        storage = _run(loop, 1)
    assert model.weight.item() == 2.0
    assert storage.latest()["skipped_steps"][0] == 1 and "total_loss" not in storage.latest()
    assert "picture_nan.jpg, picture_1.jpg" in caplog.text


def test_infinite_gradients_of_a_finite_loss_are_skipped_too():
    model = Root()
    loop = _loop(model, [_batch(1)])
    _run(loop, 1)
    assert model.weight.item() == 0 and loop.num_skipped == 1


def test_fp16_may_lower_its_scale_but_not_for_ever():
    loop = _loop(Root(), [_batch(1)] * 40, autocast_dtype=torch.float16)
    halvings = round(math.log2(loop._scaler.get_scale()))
    _run(loop, halvings)
    assert loop.num_skipped == 0
    with pytest.raises(RuntimeError, match="steps in a row"):
        _run(loop, MAX_SKIPPED_IN_A_ROW)


def test_a_long_run_of_skipped_steps_ends_training_with_the_images():
    loop = _loop(Line(), [_batch(math.inf)] * MAX_SKIPPED_IN_A_ROW)
    with pytest.raises(RuntimeError, match=r"10 steps in a row .* picture_inf.jpg.* SOLVER.BASE_LR"):
        _run(loop, MAX_SKIPPED_IN_A_ROW)


def test_a_good_step_in_between_lets_training_go_on():
    batches = [_batch(math.inf)] * (MAX_SKIPPED_IN_A_ROW - 1) + [_batch(1)] + [_batch(math.inf)] * 3
    loop = _loop(Line(), batches)
    _run(loop, len(batches))
    assert loop.num_skipped == MAX_SKIPPED_IN_A_ROW + 2


@pytest.mark.parametrize("model_type", [Line, MeanLine])
def test_micro_batches_make_the_same_step_as_their_joined_batch(model_type):
    whole, parts = model_type(), model_type()
    storage = _run(_loop(whole, [_batch(1, 2, 3, 4)]), 1)
    storage_of_parts = _run(_loop(parts, [_batch(1, 2), _batch(3, 4)], accumulation_steps=2), 1)
    assert parts.weight.item() == pytest.approx(whole.weight.item(), rel=1e-6)
    assert storage_of_parts.latest()["total_loss"][0] == pytest.approx(storage.latest()["total_loss"][0])


def test_only_the_images_of_the_broken_micro_batch_are_named(caplog):
    loop = _loop(Line(), [_batch(1, 2), _batch(3, math.nan)], accumulation_steps=2)
    _run(loop, 1)
    assert "picture_3.jpg, picture_nan.jpg" in caplog.text and "picture_1.jpg" not in caplog.text


def test_bf16_runs_on_cpu():
    model = Line()
    _run(_loop(model, [_batch(1)], autocast_dtype=torch.bfloat16), 1)
    assert model.seen_dtype == torch.bfloat16 and model.weight.item() != 2.0


def test_a_step_depends_on_seed_and_number_not_on_what_came_before():
    drawn = []

    class Noise(Line):
        def forward(self, batch, normalizer=None):
            drawn.append(torch.rand(()).item())
            return super().forward(batch)

    _run(_loop(Noise(), [_batch(1)] * 3), 3)
    torch.rand(7)
    _run(_loop(Noise(), [_batch(1)] * 3), 3)
    assert drawn[:3] == drawn[3:] and len(set(drawn)) == 3


def test_the_state_holds_optimizer_and_counter():
    loop = _loop(Line(), [_batch(math.nan)])
    _run(loop, 1)
    other = _loop(Line(), [])
    other.load_state_dict(loop.state_dict())
    assert other.num_skipped == 1 and other.iter == loop.iter
