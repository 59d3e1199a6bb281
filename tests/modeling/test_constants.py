"""Remembering tensors that follow from sizes."""

import torch

from mask2former.modeling.constants import cached_constant


def make_counting_function(max_entries: int):
    calls = []

    @cached_constant(max_entries=max_entries)
    def build(size: int) -> torch.Tensor:
        calls.append(size)
        return torch.zeros(size)

    return build, calls


def test_a_size_is_built_once() -> None:
    build, calls = make_counting_function(2)
    assert build(3) is build(3)
    assert calls == [3]


def test_old_sizes_are_forgotten() -> None:
    build, calls = make_counting_function(2)
    for size in (1, 2, 3, 1):
        build(size)
    assert calls == [1, 2, 3, 1]


def test_what_inference_builds_serves_training() -> None:
    build, _ = make_counting_function(2)
    with torch.inference_mode():
        build(3)
    weight = torch.ones(3, requires_grad=True)
    (weight * build(3)).sum().backward()
    assert torch.equal(weight.grad, torch.zeros(3))
