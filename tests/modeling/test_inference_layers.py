"""Layers that do less without gradients: the same results, the same parameters."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import Tensor, nn

from mask2former.modeling.inference_layers import (
    FoldingConv2d,
    InferenceLinear,
    fold_norms,
    inference_linear,
    use_inference_layers,
)
from mask2former.modeling.inference_precision import cpu_has_bfloat16
from tests.golden import fill_deterministically

needs_bfloat16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="needs a CPU with products in bfloat16")

RESNETS = {"18": ["DEPTH", 18], "50": ["DEPTH", 50, "STEM_OUT_CHANNELS", 8, "RES2_OUT_CHANNELS", 16]}


def _resnet(depth: str, norm: str = "FrozenBN", *, replaced: bool) -> nn.Module:
    cfg = get_cfg()
    settings: list[Any] = ["OUT_FEATURES", ["res2", "res3", "res4", "res5"], "NORM", norm, "STRIDE_IN_1X1", False]
    settings += ["RES2_OUT_CHANNELS", 64] + RESNETS[depth]
    pairs = zip(settings[::2], settings[1::2], strict=True)
    cfg.merge_from_list([item for name, value in pairs for item in (f"MODEL.RESNETS.{name}", value)])
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    network = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    fill_deterministically(network)
    if replaced:
        use_inference_layers(network)
    return network.eval()


def _pictures() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def _convolution(norm: nn.Module | None, **options: Any) -> FoldingConv2d:
    torch.manual_seed(0)
    conv = nn.Sequential(Conv2d(3, 4, 3, padding=1, norm=norm, **options))
    fill_deterministically(conv)
    use_inference_layers(conv)
    return conv[0].eval()


def _map() -> Tensor:
    return torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("depth", "norm"), [("50", "FrozenBN"), ("18", "FrozenBN"), ("50", "BN"), ("18", "GN")])
def test_a_backbone_gives_the_same_maps(depth: str, norm: str, memory_format: torch.memory_format) -> None:
    pictures = _pictures().contiguous(memory_format=memory_format)
    plain, replaced = (_resnet(depth, norm, replaced=replaced) for replaced in (False, True))
    with torch.no_grad():
        expected, found = plain(pictures), replaced(pictures)
    for name, feature in expected.items():
        torch.testing.assert_close(found[name], feature, rtol=1e-4, atol=1e-4 * feature.abs().max().item())


@pytest.mark.parametrize("replaced", [False, True])
def test_norms_are_folded_for_good(replaced: bool) -> None:
    network, expected = _resnet("18", replaced=replaced), _resnet("18", replaced=False)
    fold_norms(network)
    assert not [module for module in network.modules() if isinstance(module, FrozenBatchNorm2d)]
    with torch.no_grad():
        found, maps = network(_pictures()), expected(_pictures())
    for name, map_ in maps.items():
        torch.testing.assert_close(found[name], map_, atol=1e-5 * map_.abs().max().item(), rtol=0)


def test_norms_that_look_at_the_batch_are_not_folded() -> None:
    conv = _convolution(nn.BatchNorm2d(4)).train()
    fold_norms(conv)
    assert isinstance(conv.norm, nn.BatchNorm2d)


def test_names_of_parameters_and_buffers_stay() -> None:
    plain, replaced = (_resnet("50", replaced=replaced) for replaced in (False, True))
    with torch.no_grad():
        replaced(_pictures())
    assert list(replaced.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in replaced.named_buffers()] == [name for name, _ in plain.named_buffers()]


@pytest.mark.parametrize(("depth", "norm"), [("50", "FrozenBN"), ("18", "FrozenBN"), ("18", "GN")])
def test_gradients_are_the_same_also_after_inference(depth: str, norm: str) -> None:
    gradients = []
    for replaced in (False, True):
        network = _resnet(depth, norm, replaced=replaced)
        with torch.inference_mode():
            network(_pictures())
        sum(feature.square().mean() for feature in network.train()(_pictures()).values()).backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())


@pytest.mark.parametrize("cpu_has_it", [pytest.param(True, marks=needs_bfloat16), False])
def test_half_precision_runs_in_channels_last_and_stays_close(
    cpu_has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former.modeling.inference_layers.cpu_has_bfloat16", lambda: cpu_has_it)
    network = _resnet("50", replaced=True)
    with torch.no_grad():
        expected = network(_pictures())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(_pictures().contiguous(memory_format=torch.channels_last))
    for name, feature in expected.items():
        assert found[name].dtype == torch.bfloat16
        assert found[name].is_contiguous(memory_format=torch.channels_last)
        assert (found[name] - feature).norm() / feature.norm() < 0.02


@pytest.mark.parametrize(
    ("norm", "bias"),
    [
        (FrozenBatchNorm2d(4), False),
        (nn.BatchNorm2d(4), True),
        (nn.BatchNorm2d(4, affine=False), False),
        (nn.SyncBatchNorm(4), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_norm_with_fixed_statistics_becomes_part_of_the_convolution(norm: nn.Module, bias: bool) -> None:
    conv, x = _convolution(norm, bias=bias, activation=F.relu), _map()
    with torch.no_grad():
        found = conv(x)
        expected = norm(F.conv2d(x, conv.weight, conv.bias, padding=1)).relu()
        norm.forward = None  # it is not called again
        assert torch.equal(conv(x), found)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4)])
def test_a_norm_that_looks_at_its_input_is_left_alone(norm: nn.Module) -> None:
    conv, x = _convolution(norm), _map()
    with torch.no_grad():
        torch.testing.assert_close(conv(x), norm(F.conv2d(x, conv.weight, conv.bias, padding=1)))


def test_a_norm_that_learns_sees_its_batch() -> None:
    conv = _convolution(nn.BatchNorm2d(4)).train()
    before = conv.norm.running_mean.clone()
    with torch.no_grad():
        conv(_map())
    assert not torch.equal(conv.norm.running_mean, before)


def test_sum_and_relu_follow_the_convolution() -> None:
    conv, x = _convolution(FrozenBatchNorm2d(4)), _map()
    addend = torch.randn(2, 4, 5, 6)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(conv(x, True, addend.clone()), (conv(x) + addend).relu())
            torch.testing.assert_close(conv(x, False, addend.clone()), conv(x) + addend)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_addend", [False, True])
def test_folded_in_training_it_has_the_same_gradients(bias: bool, relu: bool, with_addend: bool) -> None:
    """As on a GPU; on the CPU another form is faster."""
    conv = _convolution(FrozenBatchNorm2d(4), bias=bias).double().train()
    x, direction = _map().double().requires_grad_(), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    addend = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True) if with_addend else None
    expected = conv.norm(F.conv2d(x, conv.weight, conv.bias, padding=1))
    expected = expected if addend is None else expected + addend
    expected = expected.relu() if relu else expected
    inputs = [x, *conv.parameters(), *([] if addend is None else [addend])]
    found = conv._folded_in_training(x, ((1, 1), (1, 1), (1, 1), 1), relu, addend)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((y * direction).sum(), inputs) for y in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def _optimizer_step(conv: FoldingConv2d) -> None:
    conv(_map()).sum().backward()
    torch.optim.SGD(conv.parameters(), lr=0.1).step()


def _load(conv: FoldingConv2d) -> None:
    conv.load_state_dict({name: tensor + 1 for name, tensor in conv.state_dict().items()})


def _load_into_norm(conv: FoldingConv2d) -> None:
    conv.norm.running_var.mul_(2)


def _swap_data_and_evaluate(conv: FoldingConv2d) -> None:
    conv.weight.data.copy_(conv.weight.data + 1)  # as moving averages of weights do; no version counts it
    conv.eval()


@pytest.mark.parametrize("change", [_optimizer_step, _load, _load_into_norm, _swap_data_and_evaluate])
def test_changed_weights_are_folded_anew(change: Any) -> None:
    conv, x = _convolution(FrozenBatchNorm2d(4)), _map()
    with torch.no_grad():
        before = conv(x)
    change(conv)
    with torch.no_grad():
        found, expected = conv(x), conv.norm(F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, expected)


def test_copies_and_pickles_leave_the_folded_weights_behind() -> None:
    conv, x = _convolution(FrozenBatchNorm2d(4)), _map()
    with torch.inference_mode():
        expected = conv(x)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert other._prepared is None
        with torch.no_grad():
            assert torch.equal(other(x), expected)


def test_weights_that_were_born_in_inference_mode_are_not_remembered() -> None:
    x = _map()
    with torch.inference_mode():
        conv = _convolution(FrozenBatchNorm2d(4))
        conv(x)
        conv.weight.mul_(2)
        torch.testing.assert_close(conv(x), conv.norm(F.conv2d(x, conv.weight, conv.bias, padding=1)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_a_linear_map_is_one(bias: bool, dtype: torch.dtype | None, tolerance: float) -> None:
    torch.manual_seed(0)
    linear, x = InferenceLinear(6, 5, bias=bias), torch.randn(2, 3, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        for relu in (False, True):
            found = linear(x, relu)
            expected = x @ linear.weight.T + (linear.bias if bias else 0)
            assert found.dtype == (dtype or torch.float32)
            torch.testing.assert_close(
                found.float(), (expected.relu() if relu else expected).float(), rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("shape", [(0, 6), (6,), (2, 0, 6)])
def test_a_linear_map_takes_inputs_of_all_shapes(shape: tuple[int, ...]) -> None:
    linear = InferenceLinear(6, 5)
    with torch.no_grad():
        torch.testing.assert_close(linear(torch.ones(shape)), F.linear(torch.ones(shape), linear.weight, linear.bias))


def test_other_dtypes_are_left_to_pytorch() -> None:
    linear, x = InferenceLinear(6, 5).double(), torch.ones(2, 6, dtype=torch.float64)
    with torch.no_grad():
        assert linear(x).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x).dtype == torch.float64
        with pytest.raises(RuntimeError, match="dtype"):
            linear(x.float())


def test_gradients_go_through_a_linear_map() -> None:
    weight, bias, x = torch.ones(5, 6, requires_grad=True), torch.ones(5, requires_grad=True), torch.ones(2, 6)
    inference_linear(x, weight, bias, relu=True).sum().backward()
    assert torch.equal(weight.grad, torch.full((5, 6), 2.0))
    assert torch.equal(bias.grad, torch.full((5,), 2.0))


def test_only_objects_of_the_very_types_are_replaced() -> None:
    class Own(nn.Linear):
        pass

    network = nn.ModuleList([nn.Linear(2, 2), Own(2, 2), nn.Conv2d(2, 2, 1), Conv2d(2, 2, 1)])
    use_inference_layers(network)
    use_inference_layers(network)
    assert [type(module) for module in network] == [InferenceLinear, Own, nn.Conv2d, FoldingConv2d]
