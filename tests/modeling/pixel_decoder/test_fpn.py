"""Feature pyramids, without and with a transformer encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor

from mask2former.config import load_config
from mask2former.modeling.pixel_decoder.fpn import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask2former.registry import PIXEL_DECODER_REGISTRY
from tests.golden import CONFIGS

CHANNELS = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
INPUT_SHAPE = {name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name]) for name in CHANNELS}
WIDTH, MASK_DIM = 32, 12
MASKFORMER_PANOPTIC = CONFIGS / "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml"


def _plain(input_shape: dict[str, ShapeSpec] | None = None, norm: str = "GN") -> BasePixelDecoder:
    torch.manual_seed(0)
    return BasePixelDecoder(input_shape or INPUT_SHAPE, conv_dim=WIDTH, mask_dim=MASK_DIM, norm=norm)


def _encoding(input_shape: dict[str, ShapeSpec] | None = None, **changes: Any) -> TransformerEncoderPixelDecoder:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "conv_dim": WIDTH,
        "mask_dim": MASK_DIM,
        "norm": "GN",
        "num_layers": 2,
        "num_heads": 4,
        "feedforward_dim": 24,
        "dropout": 0.0,
        "pre_norm": False,
    }
    return TransformerEncoderPixelDecoder(input_shape or INPUT_SHAPE, **(options | changes))


def _features(batch: int = 2, height: int = 70, width: int = 101) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(batch, CHANNELS[name], -(-height // stride), -(-width // stride), generator=generator)
        for name, stride in STRIDES.items()
    }


def _tensors(outputs: tuple[Tensor, Tensor | None, list[Tensor]]) -> list[Tensor]:
    mask_features, encoder_map, maps = outputs
    return [mask_features, *maps] if encoder_map is None else [mask_features, encoder_map, *maps]


@pytest.mark.parametrize("decoder", [_plain(), _encoding(), _encoding(pre_norm=True)], ids=["plain", "post", "pre"])
def test_maps_come_coarse_to_fine_and_embeddings_at_the_finest_stride(decoder: BasePixelDecoder) -> None:
    mask_features, encoder_map, maps = decoder.forward_features(_features())
    assert mask_features.shape == (2, MASK_DIM, 18, 26)
    assert [tuple(level.shape) for level in maps] == [(2, WIDTH, 3, 4), (2, WIDTH, 5, 7), (2, WIDTH, 9, 13)]
    assert (encoder_map is None) == (type(decoder) is BasePixelDecoder)
    assert encoder_map is None or encoder_map.shape == maps[0].shape


def test_each_level_adds_the_nearest_coarser_cells_to_its_own() -> None:
    decoder, features = _plain(), _features()
    _, _, (coarse, fine, _) = decoder.forward_features(features)
    nearest = F.interpolate(coarse, size=(5, 7), mode="nearest")
    torch.testing.assert_close(fine, decoder.layer_3(decoder.adapter_3(features["res4"]) + nearest))
    assert fine.min() == 0, "a level ends with ReLU"


def test_convolutions_are_numbered_from_the_finest_map_whatever_the_order_of_the_inputs() -> None:
    decoder = _plain(dict(reversed(INPUT_SHAPE.items())))
    widths = {name: module.in_channels for name, module in decoder.named_children()}
    adapters, layers = {"adapter_1": 4, "adapter_2": 6, "adapter_3": 8}, {f"layer_{i}": WIDTH for i in (1, 2, 3)}
    assert widths == {**adapters, **layers, "layer_4": 10, "mask_features": WIDTH}


def test_the_last_of_two_maps_of_one_stride_is_the_coarsest() -> None:
    # As a ResNet with MODEL.RESNETS.RES5_DILATION 2 has them.
    dilated = {**INPUT_SHAPE, "res5": ShapeSpec(channels=CHANNELS["res5"], stride=STRIDES["res4"])}
    features = _features()
    features["res5"] = torch.randn(2, CHANNELS["res5"], *features["res4"].shape[-2:])
    for decoder in (_plain(dilated), _encoding(dilated)):
        _, _, maps = decoder.forward_features(features)
        assert [tuple(level.shape[-2:]) for level in maps] == [(5, 7), (5, 7), (9, 13)]


def test_a_single_map_needs_no_pyramid() -> None:
    decoder = _plain({"res4": INPUT_SHAPE["res4"]})
    mask_features, _, maps = decoder.forward_features(_features())
    assert mask_features.shape == (2, MASK_DIM, 5, 7)
    assert len(maps) == 1


def test_without_a_norm_convolutions_have_biases() -> None:
    with_norm, without = set(_plain().state_dict()), set(_plain(norm="").state_dict())
    assert "adapter_1.norm.weight" in with_norm and "adapter_1.bias" not in with_norm
    assert "adapter_1.bias" in without and not [name for name in without if "norm" in name]


def test_the_pyramid_stands_on_what_the_encoder_made() -> None:
    decoder = _encoding()
    _, encoder_map, maps = decoder.forward_features(_features())
    torch.testing.assert_close(maps[0], decoder.layer_4(encoder_map))


def test_the_encoder_tells_cells_apart_by_position() -> None:
    features = {name: torch.ones_like(feature) for name, feature in _features(batch=1).items()}
    _, encoder_map, _ = _encoding().forward_features(features)
    # Equal cells stay equal where every cell reads the same mean: positions enter attention, not values.
    torch.testing.assert_close(encoder_map, encoder_map[:, :, :1, :1].expand_as(encoder_map))
    features["res5"][..., 0, 0] = -1.0
    _, encoder_map, _ = _encoding().forward_features(features)
    assert (encoder_map[..., 2, 3] - encoder_map[..., 1, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("decoder", [_plain(), _encoding()], ids=["plain", "encoder"])
def test_pictures_of_a_batch_do_not_mix(decoder: BasePixelDecoder) -> None:
    features = _features()
    together = _tensors(decoder.forward_features(features))
    alone = _tensors(decoder.forward_features({name: feature[1:] for name, feature in features.items()}))
    for joined, single in zip(together, alone, strict=True):
        torch.testing.assert_close(joined[1:], single, rtol=1e-4, atol=1e-5)


def test_dropout_acts_only_while_training() -> None:
    decoder, features = _encoding(dropout=0.5), _features()
    plain = _tensors(_encoding().forward_features(features))
    for output, expected in zip(_tensors(decoder.eval().forward_features(features)), plain, strict=True):
        assert torch.equal(output, expected)
    assert not torch.allclose(decoder.train().forward_features(features)[0], plain[0])


def test_checkpointing_changes_neither_outputs_nor_gradients() -> None:
    results = []
    for checkpoint_layers in (False, True):
        decoder = _encoding(checkpoint_layers=checkpoint_layers)
        outputs = _tensors(decoder.forward_features(_features()))
        sum(output.square().mean() for output in outputs).backward()
        results.append([*outputs, *(parameter.grad for parameter in decoder.parameters())])
    assert all(gradient is not None for gradient in results[0])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_config_selects_its_parts() -> None:
    overrides = ["MODEL.MASK_FORMER.CHECKPOINT_TRANSFORMER", "True"]
    decoder = TransformerEncoderPixelDecoder(load_config(MASKFORMER_PANOPTIC, overrides), INPUT_SHAPE)
    encoder = decoder.transformer.encoder
    assert len(encoder.layers) == 6 and encoder.checkpoint_layers
    assert encoder.layers[0].linear1.out_features == 2048
    assert encoder.layers[0].dropout.p == encoder.layers[0].self_attn.dropout == 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", "48"], r"CONVS_DIM=48 must be divisible by 32, the groups"),
        (["MODEL.SEM_SEG_HEAD.NORM", "Group"], r"MODEL\.SEM_SEG_HEAD\.NORM='Group' is unknown"),
        (["MODEL.MASK_FORMER.NHEADS", "5"], r"CONVS_DIM=256 must be divisible by 5, MODEL\.MASK_FORMER\.NHEADS"),
    ],
)
def test_settings_that_cannot_be_built_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerEncoderPixelDecoder(load_config(MASKFORMER_PANOPTIC, overrides), INPUT_SHAPE)


@pytest.mark.parametrize("make", [_plain, _encoding])
def test_autocast_decides_on_the_precision_unless_float32_is_forced(make: Callable[..., BasePixelDecoder]) -> None:
    features = _features()
    expected = _tensors(make().forward_features(features))
    forced = make()
    forced.force_fp32 = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = _tensors(make().forward_features(features))
        wholes = _tensors(forced.forward_features(features))
    for half, whole, exact in zip(halves, wholes, expected, strict=True):
        assert torch.equal(whole, exact)
        assert half.dtype == torch.bfloat16
        assert (half - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("name", ["BasePixelDecoder", "TransformerEncoderPixelDecoder", "MSDeformAttnPixelDecoder"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_config_forces_float32(name: str, forced: bool) -> None:
    overrides = ["MODEL.SEM_SEG_HEAD.FORCE_FP32", str(forced), "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"]
    cfg = load_config(MASKFORMER_PANOPTIC, overrides)
    assert PIXEL_DECODER_REGISTRY.get(name)(cfg, INPUT_SHAPE).force_fp32 is forced
