"""The pixel decoder with a deformable encoder."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from mask2former.config import load_config
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder, cell_centers
from mask2former.modeling.pixel_decoder.ops.functional import fused_ms_deform_attn
from mask2former.modeling.pixel_decoder.ops.reference import fused_ms_deform_attn_reference
from mask2former.registry import PIXEL_DECODER_REGISTRY
from tests.golden import CONFIGS

CHANNELS = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
SIZES = ((3, 4), (5, 7), (9, 13))  # of the maps that the encoder makes of `make_features()`
INPUT_SHAPE = {name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name]) for name in CHANNELS}


def make_decoder(**changes) -> MSDeformAttnPixelDecoder:
    torch.manual_seed(0)
    options = {
        "transformer_in_features": ["res3", "res4", "res5"],
        "conv_dim": 32,
        "mask_dim": 12,
        "norm": "GN",
        "num_layers": 2,
        "num_heads": 4,
        "dropout": 0.0,
        **changes,
    }
    decoder = MSDeformAttnPixelDecoder(INPUT_SHAPE, **options)
    with torch.no_grad():  # a new layer attends evenly to fixed places; make it depend on its input
        for layer in decoder.transformer.encoder.layers:
            layer.self_attn.sampling_offsets.weight.normal_(std=0.2)
            layer.self_attn.attention_weights.weight.normal_(std=0.2)
    return decoder


def make_features(batch: int = 2, height: int = 70, width: int = 101, **kwargs) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.randn(batch, CHANNELS[name], -(-height // stride), -(-width // stride), **kwargs)
        for name, stride in STRIDES.items()
    }


def flat(outputs) -> list[torch.Tensor]:
    mask_features, encoder_map, maps = outputs
    return [mask_features, encoder_map, *maps]


def test_maps_come_coarse_to_fine_and_embeddings_at_the_finest_stride() -> None:
    mask_features, encoder_map, maps = make_decoder().forward_features(make_features())
    assert mask_features.shape == (2, 12, 18, 26)
    assert [tuple(level.shape) for level in maps] == [(2, 32, 3, 4), (2, 32, 5, 7), (2, 32, 9, 13)]
    assert torch.equal(encoder_map, maps[0])


@pytest.mark.parametrize(
    ("encoder_features", "pyramid"),
    [
        (["res2", "res3", "res4", "res5"], []),
        (["res3", "res4", "res5"], ["adapter_1", "layer_1"]),
        (["res4", "res5"], ["adapter_1", "adapter_2", "layer_1", "layer_2"]),
    ],
)
def test_the_pyramid_covers_what_the_encoder_does_not_read(encoder_features: list[str], pyramid: list[str]) -> None:
    decoder = make_decoder(transformer_in_features=encoder_features)
    names = sorted(name for name, _ in decoder.named_children() if name.startswith(("adapter", "layer")))
    mask_features, _, maps = decoder.forward_features(make_features())
    assert names == pyramid
    assert mask_features.shape[-2:] == (18, 26)
    assert [level.shape[-1] for level in maps] == [4, 7, 13]


def test_the_first_projection_reads_the_coarsest_map() -> None:
    assert [projection[0].in_channels for projection in make_decoder().input_proj] == [10, 8, 6]


def test_without_a_norm_the_pyramid_has_biases() -> None:
    decoder = make_decoder(norm="")
    assert decoder.adapter_1.bias is not None
    assert decoder.layer_1.norm is None


def test_pictures_of_a_batch_do_not_mix() -> None:
    decoder, features = make_decoder().double(), make_features(dtype=torch.float64)
    together = flat(decoder.forward_features(features))
    alone = flat(decoder.forward_features({name: feature[1:] for name, feature in features.items()}))
    for joined, single in zip(together, alone, strict=True):
        torch.testing.assert_close(joined[1:], single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forced_to_float32_autocast_changes_nothing(dtype: torch.dtype) -> None:
    decoder, features = make_decoder(force_fp32=True), make_features()
    features = {name: feature.to(dtype) for name, feature in features.items()}
    expected = flat(make_decoder().forward_features({name: feature.float() for name, feature in features.items()}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = flat(decoder.forward_features(features))
    for output, plain in zip(outputs, expected, strict=True):
        assert output.dtype == torch.float32
        assert torch.equal(output, plain)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.0025)])
def test_under_autocast_maps_have_its_precision(dtype: torch.dtype, bound: float) -> None:
    decoder, features = make_decoder(), make_features()
    expected = flat(decoder.forward_features(features))
    with torch.autocast("cpu", dtype=dtype):
        outputs = flat(decoder.forward_features({name: feature.to(dtype) for name, feature in features.items()}))
    for output, exact in zip(outputs, expected, strict=True):
        assert output.dtype == dtype
        assert 0 < (output - exact).norm() / exact.norm() < bound


def test_half_precision_reaches_neither_places_nor_positions() -> None:
    decoder, seen = make_decoder(), {}

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        query, reference_points, tokens, _ = inputs
        seen.update(query=query, reference_points=reference_points, tokens=tokens)

    encoder = decoder.transformer.encoder
    encoder.register_forward_pre_hook(lambda module, inputs: seen.update(position=inputs[1]))
    encoder.layers[0].self_attn.register_forward_hook(look)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        decoder.forward_features(make_features())
    assert seen["tokens"].dtype == torch.bfloat16
    assert seen["position"].dtype == seen["reference_points"].dtype == torch.float32
    # Rounded once, after the sum.
    assert torch.equal(seen["query"], (seen["tokens"].float() + seen["position"]).bfloat16())
    assert torch.equal(seen["reference_points"][0, :, 0], cell_centers(SIZES, torch.float32, torch.device("cpu")))


def test_sampling_and_softmax_of_half_numbers_are_computed_in_float32() -> None:
    attention = make_decoder().transformer.encoder.layers[0].self_attn
    reference = cell_centers(SIZES, torch.float32, torch.device("cpu"))[None, :, None].expand(-1, -1, len(SIZES), -1)
    torch.manual_seed(2)
    tokens = torch.randn(1, reference.shape[1], 32)
    heads = (attention.n_heads, attention.n_levels, attention.n_points)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        value, offsets, logits = (
            projection(tokens)
            for projection in (attention.value_proj, attention.sampling_offsets, attention.attention_weights)
        )
        arguments = [
            value.unflatten(-1, (heads[0], -1)),
            offsets.unflatten(-1, (*heads, 2)),
            logits.unflatten(-1, heads),
        ]
        found = fused_ms_deform_attn(arguments[0], SIZES, reference, *arguments[1:])
    exact = [argument.double() for argument in arguments]
    expected = fused_ms_deform_attn_reference(exact[0], SIZES, reference.double(), *exact[1:])
    assert value.dtype == offsets.dtype == logits.dtype == found.dtype == torch.bfloat16
    # What remains is the rounding of the result itself, half a unit of 8 bits.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)


def test_training_under_autocast_reaches_every_parameter() -> None:
    decoder = make_decoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = flat(decoder.forward_features(make_features()))
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_checkpointing_changes_neither_outputs_nor_gradients() -> None:
    results = []
    for checkpoint_layers in (False, True):
        decoder = make_decoder(checkpoint_layers=checkpoint_layers)
        outputs = flat(decoder.forward_features(make_features()))
        sum(output.square().mean() for output in outputs).backward()
        results.append((outputs, [parameter.grad for parameter in decoder.parameters()]))
    for plain, recomputed in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_every_parameter_is_trained() -> None:
    decoder = make_decoder()
    sum(output.square().mean() for output in flat(decoder.forward_features(make_features()))).backward()
    assert not [name for name, parameter in decoder.named_parameters() if parameter.grad is None]


def test_inference_before_training_does_no_harm() -> None:
    decoder, features = make_decoder(), make_features(batch=1, height=64, width=96)
    with torch.inference_mode():
        decoder.forward_features(features)
    flat(decoder.forward_features(features))[0].sum().backward()


def test_no_value_is_read_back_by_the_host() -> None:
    # Tensors on "meta" have no values: reading one raises.
    maps = [torch.empty(2, 32, height, width, device="meta") for height, width in ((3, 4), (5, 7), (9, 13))]
    decoded = make_decoder().transformer.to("meta")(maps)
    assert [level.shape for level in decoded] == [level.shape for level in maps]


class Exportable(torch.nn.Module):
    def __init__(self, decoder: MSDeformAttnPixelDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return flat(self.decoder.forward_features(features))


def test_an_export_computes_the_same_and_leaves_nothing_behind() -> None:
    # A size of its own, so that tracing is the first to ask for its constants.
    decoder, features = make_decoder(num_layers=1).eval(), make_features(batch=1, height=61, width=77)
    with torch.no_grad():
        exported = torch.export.export(Exportable(decoder), (features,)).module()
        expected = flat(decoder.forward_features(features))
        for output, eager in zip(exported(features), expected, strict=True):
            torch.testing.assert_close(output, eager)


def test_constants_stay_out_of_checkpoints() -> None:
    decoder = make_decoder()
    names = set(decoder.state_dict())
    decoder.forward_features(make_features())
    assert set(decoder.state_dict()) == names
    assert not list(decoder.buffers())


def test_reference_points_are_the_centers_of_cells_ordered_by_row() -> None:
    centers = cell_centers(((1, 1), (2, 4)), torch.float64, torch.device("cpu"))
    expected = [(0.5, 0.5), *((x, y) for y in (0.25, 0.75) for x in (0.125, 0.375, 0.625, 0.875))]
    torch.testing.assert_close(centers, torch.tensor(expected, dtype=torch.float64))


def test_a_config_selects_it() -> None:
    cfg = load_config(
        CONFIGS / "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "64", "MODEL.MASK_FORMER.CHECKPOINT_TRANSFORMER", "True"],
    )
    decoder = PIXEL_DECODER_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME)(cfg, INPUT_SHAPE)
    assert len(decoder.transformer.encoder.layers) == 6
    assert decoder.transformer.encoder.checkpoint_layers
    assert not decoder.force_fp32
    assert decoder.transformer.encoder.layers[0].linear1.out_features == 1024
    assert decoder.mask_features.weight.shape == (256, 64, 1, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", "48"], "CONVS_DIM=48 must be divisible by 32"),
        (["MODEL.MASK_FORMER.NHEADS", "5"], "divisible by 5, MODEL.MASK_FORMER.NHEADS"),
        (
            ["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", "['p3']"],
            "IN_FEATURES=.*'p3'.* res2, res3",
        ),
        (["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", "8"], "N_POINTS=8 is not supported"),
        (["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", "4"], "N_HEADS=4 has no effect"),
    ],
)
def test_settings_that_cannot_be_built_are_named(overrides: list[str], message: str) -> None:
    cfg = load_config(CONFIGS / "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", overrides)
    with pytest.raises(ValueError, match=message):
        MSDeformAttnPixelDecoder(cfg, INPUT_SHAPE)
