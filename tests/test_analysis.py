"""Counting multiply-adds: known layers by hand, and sums that agree whichever way they are grouped."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock
from torch import Tensor, nn

from mask2former import analysis
from mask2former.analysis import count_costs, inputs_to_count
from mask2former.modeling.inference_layers import use_inference_layers
from mask2former.modeling.pixel_decoder.ops import MSDeformAttn
from tests.tiny_model import tiny_config, tiny_model


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, kernel_size=3, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> Tensor:
        tokens = self.conv(batched_inputs[0]["image"][None]).flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(*[self.linear(tokens)[None]] * 3)


def tiny_resnet() -> nn.Module:
    """A stem, a residual block with shortcut and a linear map."""
    block = BottleneckBlock(8, 16, bottleneck_channels=4, norm="FrozenBN")
    return nn.Sequential(BasicStem(3, 8, norm="FrozenBN"), block, nn.Flatten(2), nn.Linear(64, 5)).eval()


def test_known_layers_are_counted_as_by_hand() -> None:
    costs = count_costs(Layers(), [{"image": torch.zeros(3, 4, 6)}])
    assert costs.flops["conv", "convolution"] == 4 * 6 * 8 * 3 * 9
    assert costs.flops["linear", "matrix product"] == 24 * 8 * 5
    # Whatever kernel it runs through: queries times keys, then weights times values.
    assert costs.total_flops - costs.flops_by_part()["conv"] == 24 * 8 * 5 + 2 * 24 * 24 * 5
    assert costs.activations["conv", "convolution"] == 4 * 6 * 8
    assert costs.activations["linear", "matrix product"] == 24 * 5


def test_layers_that_are_fused_without_gradients_are_counted_as_plain_ones() -> None:
    torch.manual_seed(0)
    plain = tiny_resnet()
    fused = copy.deepcopy(plain)
    use_inference_layers(fused)
    counts = [count_costs(network, torch.zeros(1, 3, 32, 32)) for network in (plain, fused)]
    for operator in ("convolution", "matrix product"):
        assert counts[0].flops_by_operator()[operator] == counts[1].flops_by_operator()[operator] > 0
        assert counts[0].activations_by_operator()[operator] == counts[1].activations_by_operator()[operator] > 0


def test_fused_operators_of_gpus_are_counted_as_plain_ones() -> None:
    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch._addmm_activation(torch.zeros(7), x, torch.zeros(5, 7))

    assert count_costs(Fused(), torch.zeros(3, 5)).total_flops == 3 * 5 * 7
    for operator in (torch.ops.aten.cudnn_convolution_relu, torch.ops.aten.cudnn_convolution_add_relu):
        assert str(operator) in analysis._FUSED  # the input comes first, the weight second


def test_reads_of_deformable_attention_are_counted() -> None:
    batch, tokens, channels, levels, points = 1, 4 * 4 + 2 * 2, 16, 2, 4
    layer = MSDeformAttn(channels, levels, 2, points)

    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = layer

        def forward(self, _: object) -> Tensor:
            content = torch.zeros(batch, tokens, channels)
            return layer(content, torch.full((batch, tokens, levels, 2), 0.5), content, [(4, 4), (2, 2)])

    counted = count_costs(Caller(), []).flops["attention", "deformable attention"]
    samples = tokens * channels * levels * points
    locations = tokens * 2 * levels * points * 2
    assert counted == 5 * samples + locations


def test_the_sums_by_operator_and_by_module_agree() -> None:
    costs = count_costs(tiny_model().eval(), [{"image": torch.zeros(3, 64, 96)}])
    assert sum(costs.flops_by_operator().values()) == costs.total_flops > 0
    parts = costs.flops_by_part()
    assert sum(parts.values()) == costs.total_flops
    assert set(parts) == {"backbone", "sem_seg_head.pixel_decoder", "sem_seg_head.predictor", ""}


def test_a_fixed_size_needs_no_dataset() -> None:
    (batch,) = inputs_to_count(tiny_config("DATASETS.TEST", ("absent",)), 100, (32, 48))
    assert batch[0]["image"].shape == (3, 32, 48)


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="0x48 pixels"):
        next(inputs_to_count(tiny_config(), 1, (0, 48)))


def test_pictures_need_a_dataset() -> None:
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        next(inputs_to_count(tiny_config("DATASETS.TEST", ()), 1))
