"""When a network is recorded and when a recording may serve; what a GPU does with it is in test_cuda.py."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.constants import cached_constant, used_constants
from mask2former.modeling.cuda_graphs import MAX_COUNT, MAX_GRAPHS, RECORDED_AT, CudaGraphs, _Recording


class OnCpu(CudaGraphs):
    """Its recordings call the function again, and are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = self.replayed = 0
        self.stream = "default"

    def _current_stream(self, x: Tensor) -> Any:
        return self.stream

    @staticmethod
    def _is_for(x: Tensor) -> bool:
        return True

    def _recorded(self, owner: nn.Module, function: Any, x: Tensor) -> _Recording:
        self.recorded += 1
        static = x.clone()
        outputs = function(static)

        def replay() -> None:
            self.replayed += 1
            for output, again in zip(outputs, function(static), strict=True):
                output.copy_(again)

        return _Recording(static, SimpleNamespace(replay=replay), outputs, [])


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.Identity()).eval()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def run(graphs: CudaGraphs, network: nn.Module, *settings: Any, size: int = 4, seed: int = 0) -> Tensor:
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
    (output,) = graphs.run(network, lambda x: (network(x),), x, *settings)
    torch.testing.assert_close(output, network(x))
    return output


def run_often(graphs: CudaGraphs, network: nn.Module, *settings: Any, size: int = 4) -> None:
    for seed in range(RECORDED_AT):
        run(graphs, network, *settings, size=size, seed=seed)


def test_a_size_that_comes_often_is_recorded_once_and_replayed(network: nn.Module) -> None:
    graphs = OnCpu()
    for seed in range(RECORDED_AT + 3):
        run(graphs, network, seed=seed)
    assert (graphs.recorded, graphs.replayed) == (1, 4)
    run(graphs, network, size=5)
    run(graphs, network, "another setting")
    assert (graphs.recorded, graphs.replayed) == (1, 4)


def test_results_belong_to_the_caller(network: nn.Module) -> None:
    graphs = OnCpu()
    run_often(graphs, network)
    first = run(graphs, network, seed=1)
    kept = first.clone()
    run(graphs, network, seed=2)
    assert torch.equal(first, kept)


def test_a_size_takes_the_place_of_one_that_comes_less_often(network: nn.Module) -> None:
    graphs = OnCpu()
    for size in range(1, MAX_GRAPHS + 1):
        run_often(graphs, network, size=size)
    run(graphs, network, size=1)
    newcomer = MAX_GRAPHS + 1
    run_often(graphs, network, size=newcomer)
    assert graphs.recorded == MAX_GRAPHS  # it has not come more often than the others
    run(graphs, network, size=newcomer)
    assert graphs.recorded == MAX_GRAPHS + 1 == len(graphs._recordings) + 1
    before = graphs.replayed
    run(graphs, network, size=1)
    run(graphs, network, size=newcomer)
    assert graphs.replayed == before + 2


def test_a_size_that_was_needed_long_ago_makes_room(network: nn.Module) -> None:
    graphs = OnCpu()
    for size in range(1, MAX_GRAPHS + 1):
        for _ in range(2 * MAX_COUNT):
            run(graphs, network, size=size)
    for _ in range(MAX_COUNT + 1):
        run(graphs, network, size=MAX_GRAPHS + 1)
    assert graphs.recorded == MAX_GRAPHS + 1


def test_memory_that_recordings_keep_is_given_back_when_it_is_needed(network: nn.Module) -> None:
    graphs = OnCpu()
    run_often(graphs, network)
    errors = [torch.OutOfMemoryError("CUDA out of memory")]

    def needs_memory(x: Tensor) -> tuple[Tensor]:
        if errors:
            raise errors.pop()
        return (network(x),)

    x = torch.randn(1, 3, 9, 9)
    (output,) = graphs.run(network, needs_memory, x)
    assert torch.equal(output, network(x))
    assert not graphs._recordings
    errors.append(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):  # there is nothing left to give back
        graphs.run(network, needs_memory, x)


def test_without_memory_for_a_recording_the_network_runs_as_usual(network: nn.Module) -> None:
    class Full(OnCpu):
        def _recorded(self, *arguments: Any) -> _Recording:
            self.recorded += 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    graphs = Full()
    run_often(graphs, network)
    run_often(graphs, network)
    assert graphs.recorded == 2


def _change_in_place(network: nn.Module) -> None:
    network[0].weight.mul_(2)


def _replace_parameter(network: nn.Module) -> None:
    network[0].weight = nn.Parameter(network[0].weight + 1)


def _replace_module(network: nn.Module) -> None:
    network[0] = nn.Conv2d(3, 2, 1).eval()


def _load(network: nn.Module) -> None:
    network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})


@pytest.mark.parametrize("change", [_change_in_place, _replace_parameter, _replace_module, _load])
def test_other_weights_end_recordings(network: nn.Module, change: Any) -> None:
    graphs = OnCpu()
    run_often(graphs, network)
    change(network)
    run(graphs, network)
    assert not graphs._recordings
    run_often(graphs, network)
    assert graphs.recorded == 2


def test_nothing_is_replayed_where_somebody_looks(network: nn.Module) -> None:
    graphs = OnCpu()
    run_often(graphs, network)
    before = graphs.replayed
    with torch.enable_grad():
        run(graphs, network)
    hook = network[1].register_forward_hook(lambda *arguments: None)
    run(graphs, network)
    hook.remove()
    hook = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    run(graphs, network)
    hook.remove()
    network.train()
    run(graphs, network)
    network.eval()
    network[1].forward = lambda x: x
    run(graphs, network)
    del network[1].forward
    assert graphs.replayed == before
    run(graphs, network)
    assert graphs.replayed == before + 1


def test_another_stream_has_no_recordings(network: nn.Module) -> None:
    graphs = OnCpu()
    run_often(graphs, network)
    graphs.stream = "another"
    run_often(graphs, network)
    assert (graphs.recorded, graphs.replayed) == (1, 1)
    graphs.stream = "default"
    run(graphs, network)
    assert (graphs.recorded, graphs.replayed) == (1, 2)


def test_threads_do_not_mix_their_pictures(network: nn.Module) -> None:
    graphs = OnCpu()
    run_often(graphs, network)

    def run_in_thread(seed: int) -> None:
        with torch.no_grad():
            for turn in range(50):
                run(graphs, network, seed=100 * seed + turn)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run_in_thread, range(4)))
    assert graphs.replayed == 201


def test_a_module_may_be_missing_and_precision_set_in_any_way(network: nn.Module) -> None:
    network[0].register_module("pruned", None)
    graphs = OnCpu()
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        run_often(graphs, network)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert graphs.replayed == 1
    run(graphs, network)
    assert graphs.replayed == 1


def test_weights_born_in_inference_mode_are_not_recorded() -> None:
    with torch.inference_mode():
        network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Identity()).eval()
        graphs = OnCpu()
        run_often(graphs, network)
    assert graphs.recorded == 0


def test_a_network_that_cannot_be_recorded_runs_as_usual(network: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(OnCpu):
        def _recorded(self, *arguments: Any) -> _Recording:
            self.recorded += 1
            raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Failing()
    run_often(graphs, network)
    run_often(graphs, network)
    assert graphs.recorded == 1
    assert "it runs as usual: operation not permitted" in caplog.text


def test_copies_have_no_recordings(network: nn.Module) -> None:
    graphs = CudaGraphs()
    graphs._recordings["key"] = "recording"
    assert not copy.deepcopy(graphs)._recordings
    assert not pickle.loads(pickle.dumps(graphs))._recordings


def test_constants_in_use_are_collected_for_each_thread() -> None:
    made: list[int] = []

    @cached_constant(max_entries=1)
    def constant(size: int) -> Tensor:
        made.append(size)
        return torch.ones(size)

    constant(1)
    with used_constants() as outer:
        first = constant(1)
        with used_constants() as inner:
            second = constant(2)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(constant, 4).result()
    constant(3)
    assert [tensor is used for tensor, used in zip((first, second), outer, strict=True)] == [True, True]
    assert len(inner) == 1 and inner[0] is second
    assert made == [1, 2, 4, 3]
