"""Work on several CPU threads, each alone with its stripe."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from mask2former.modeling.postprocessing.stripes import for_each_stripe

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_items", [0, 1, 2, 3, 10])
def test_every_item_is_worked_on_once_and_stripes_are_in_order(num_items: int) -> None:
    stripes: list[list[int]] = []
    for_each_stripe(lambda items: stripes.append(list(items)), range(num_items), CPU)
    assert [item for stripe in sorted(stripes) for item in stripe] == list(range(num_items))
    assert len(stripes) == max(1, min(num_items, 3))


def test_operations_of_a_stripe_stay_on_its_thread_and_other_threads_keep_their_number() -> None:
    inside: list[int] = []
    for_each_stripe(lambda _: inside.append(torch.get_num_threads()), range(3), CPU)
    outside: list[int] = []
    thread = threading.Thread(target=lambda: outside.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert inside == [1, 1, 1]
    assert torch.get_num_threads() == 3 and outside == [3]


@pytest.mark.parametrize("is_inference", [True, False])
def test_stripes_write_into_what_the_caller_made(is_inference: bool) -> None:
    with torch.inference_mode(is_inference):
        values = torch.zeros(6)

        def write(items: Sequence[int]) -> None:
            for item in items:
                values[item] = item
            assert torch.is_inference_mode_enabled() == is_inference and not torch.is_grad_enabled()

        for_each_stripe(write, range(6), CPU)
        assert values.tolist() == list(range(6))


def test_an_error_in_a_stripe_reaches_the_caller() -> None:
    def fail(items: Sequence[int]) -> None:
        raise RuntimeError(f"stripe {list(items)}")

    with pytest.raises(RuntimeError, match=r"stripe \[0, 1\]"):
        for_each_stripe(fail, range(6), CPU)
