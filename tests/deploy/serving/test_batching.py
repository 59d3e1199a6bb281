"""Batches: as many pictures as are there, in order, of one task, and no failure or cancelling touches the others."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mask2former.deploy.serving.batching import Batcher, ClosedError
from tests.deploy.serving.fakes import wait_until


class Recorder:
    """Stands in for a model: answers with each picture's number, fails on negative ones, waits at its gate."""

    def __init__(self):
        self.gate = threading.Event()
        self.calls = []

    def __call__(self, images, task):
        self.calls.append((task, [number(image) for image in images]))
        assert self.gate.wait(30)
        if any(number(image) < 0 for image in images):
            raise ArithmeticError("negative")
        return [number(image) for image in images]


def number(image):
    return int(image[0, 0, 0])


def picture(value):
    return np.full((1, 1, 3), value, dtype=np.int64)


@pytest.fixture
def model():
    return Recorder()


@pytest.fixture
def batcher(model):
    batcher = Batcher(model, max_batch_size=3, max_wait_seconds=0.0)
    batcher.start()
    yield batcher
    model.gate.set()
    batcher.close()


def submit_behind_a_first(batcher, model, *pictures):
    """Hands pictures in while the model is busy with picture 0."""
    first = batcher.submit(picture(0), "a")
    wait_until(lambda: model.calls)
    return [first, *(batcher.submit(picture(value), task) for value, task in pictures)]


def test_what_waits_goes_together_up_to_the_limit_and_in_order(batcher, model):
    jobs = submit_behind_a_first(batcher, model, *((value, "a") for value in range(1, 6)))
    model.gate.set()
    assert [job.result.result(30) for job in jobs] == list(range(6))
    assert model.calls == [("a", [0]), ("a", [1, 2, 3]), ("a", [4, 5])]
    assert [job.batch_size for job in jobs] == [1, 3, 3, 3, 2, 2]


def test_a_batch_has_one_task_and_nobody_loses_the_place(batcher, model):
    submit_behind_a_first(batcher, model, (1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "a"), (6, "a"))
    model.gate.set()
    batcher.close()
    assert model.calls[1:] == [("a", [1, 3, 5]), ("b", [2, 4]), ("a", [6])]


def test_a_batch_waits_for_more_pictures():
    model = Recorder()
    model.gate.set()
    batcher = Batcher(model, max_batch_size=3, max_wait_seconds=30.0)
    batcher.start()
    jobs = [batcher.submit(picture(value), "a") for value in range(3)]
    assert [job.result.result(30) for job in jobs] == [0, 1, 2] and len(model.calls) == 1
    job = batcher.submit(picture(3), "a")
    batcher.close()  # nobody comes any more
    assert job.result.result(0) == 3


def test_what_is_cancelled_in_time_never_reaches_the_model(batcher, model):
    jobs = submit_behind_a_first(batcher, model, (1, "a"), (2, "a"), (3, "a"))
    assert jobs[2].result.cancel() and not jobs[0].result.cancel()
    model.gate.set()
    assert jobs[3].result.result(30) == 3 and model.calls == [("a", [0]), ("a", [1, 3])]


def test_when_all_are_cancelled_the_next_one_is_served(batcher, model):
    jobs = submit_behind_a_first(batcher, model, (1, "a"), (2, "a"))
    assert all(job.result.cancel() for job in jobs[1:])
    model.gate.set()
    assert batcher.submit(picture(7), "a").result.result(30) == 7


def test_a_picture_that_makes_the_model_fail_does_not_harm_its_batch(batcher, model):
    jobs = submit_behind_a_first(batcher, model, (1, "a"), (-2, "a"), (3, "a"))
    model.gate.set()
    assert [jobs[index].result.result(30) for index in (0, 1, 3)] == [0, 1, 3]
    with pytest.raises(ArithmeticError):
        jobs[2].result.result(30)
    assert batcher.is_alive and batcher.submit(picture(4), "a").result.result(30) == 4


def test_closing_finishes_what_was_accepted_and_takes_nothing_more(batcher, model):
    jobs = submit_behind_a_first(batcher, model, *((value, "a") for value in range(1, 8)))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.gate.set()
    closing.join(30)
    assert [job.result.result(0) for job in jobs] == list(range(8)) and not batcher.is_alive
    with pytest.raises(ClosedError, match="shutting down"):
        batcher.submit(picture(9), "a")


def test_batches_are_reported():
    model, seen = Recorder(), []
    model.gate.set()
    batcher = Batcher(
        model, max_batch_size=2, max_wait_seconds=0.0, on_batch=lambda size, seconds: seen.append((size, seconds >= 0))
    )
    batcher.start()
    batcher.submit(picture(1), "a").result.result(30)
    batcher.close()
    assert seen == [(1, True)]


def test_workers_share_the_queue_and_everything_is_answered_once():
    model, starts = Recorder(), []
    batcher = Batcher(
        model,
        max_batch_size=2,
        max_wait_seconds=0.001,
        num_workers=3,
        on_start=lambda: starts.append(threading.current_thread()),
    )
    batcher.start()
    jobs = [batcher.submit(picture(value), "a") for value in range(6)]
    wait_until(lambda: len(model.calls) == 3)  # all at the gate, together
    jobs += [batcher.submit(picture(value), "a") for value in range(6, 40)]
    model.gate.set()
    batcher.close()
    assert [job.result.result(0) for job in jobs] == list(range(40))
    assert sorted(value for _, values in model.calls for value in values) == list(range(40))
    assert len(set(starts)) == len(starts) == 3 and not batcher.is_alive


def test_a_worker_that_finds_nothing_goes_on():
    model = Recorder()
    model.gate.set()
    batcher = Batcher(model, max_batch_size=1, max_wait_seconds=0.0, num_workers=2)
    batcher.start()
    for value in range(50):
        assert batcher.submit(picture(value), "a").result.result(30) == value
    assert batcher.is_alive
    batcher.close()
