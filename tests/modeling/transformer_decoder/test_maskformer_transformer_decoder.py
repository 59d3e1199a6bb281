"""MaskFormer's decoder: what is returned for images and clips, and what a config may not ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.config import load_config
from mask2former.modeling.transformer_decoder.maskformer_transformer_decoder import StandardTransformerDecoder
from mask2former.modeling.transformer_decoder.position_encoding import SinePositionEncoding2D
from tests.golden import CONFIGS

CHANNELS, HIDDEN, MASK_DIM, QUERIES, CLASSES, LAYERS = 10, 16, 12, 6, 4, 3
MASKFORMER = CONFIGS / "ade20k-150/maskformer_R50_bs16_160k.yaml"


def _decoder(**changes: Any) -> StandardTransformerDecoder:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "in_channels": CHANNELS,
        "num_classes": CLASSES,
        "mask_classification": True,
        "hidden_dim": HIDDEN,
        "num_queries": QUERIES,
        "num_heads": 4,
        "feedforward_dim": 24,
        "dropout": 0.0,
        "num_encoder_layers": 1,
        "num_decoder_layers": LAYERS,
        "pre_norm": False,
        "deep_supervision": True,
        "mask_dim": MASK_DIM,
        "enforce_input_projection": False,
        "position_encoding": SinePositionEncoding2D(HIDDEN),
    }
    return StandardTransformerDecoder(**(options | changes))


def _inputs(num_frames: int, channels: int = CHANNELS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(num_frames, channels, 3, 4, generator=generator),
        torch.randn(num_frames, MASK_DIM, 24, 32, generator=generator),
    )


@pytest.mark.parametrize("pre_norm", [False, True])
def test_all_layers_end_with_the_only_layer_of_inference(pre_norm: bool) -> None:
    decoder = _decoder(pre_norm=pre_norm)
    every, last = decoder(*_inputs(2), all_layers=True), decoder(*_inputs(2))
    assert every.class_logits.shape == (LAYERS, 2, QUERIES, CLASSES + 1)
    assert every.masks.layer(0).dense().shape == (2, QUERIES, 1, 24, 32)
    assert last.class_logits.shape == (1, 2, QUERIES, CLASSES + 1)
    torch.testing.assert_close(every.class_logits[-1:], last.class_logits)
    torch.testing.assert_close(every.masks.layer(-1).dense(), last.masks.layer(0).dense())


def test_without_deep_supervision_only_the_last_layer_predicts() -> None:
    decoder = _decoder(deep_supervision=False)
    assert decoder(*_inputs(1), all_layers=True).class_logits.shape == (1, 1, QUERIES, CLASSES + 1)


def test_without_mask_classification_there_are_masks_and_no_classes() -> None:
    decoder = _decoder(mask_classification=False)
    assert not [name for name in decoder.state_dict() if name.startswith("class_embed")]
    predictions = decoder(*_inputs(2), all_layers=True)
    assert predictions.class_logits.shape == (LAYERS, 2, QUERIES, 0)
    assert predictions.masks.embeddings.shape == (LAYERS, 2, QUERIES, MASK_DIM)


def test_pictures_of_a_batch_do_not_mix() -> None:
    decoder = _decoder()
    features, mask_features = _inputs(3)
    together = decoder(features, mask_features)
    alone = decoder(features[1:2], mask_features[1:2])
    torch.testing.assert_close(together.class_logits[:, 1:2], alone.class_logits)
    torch.testing.assert_close(together.masks.layer(0).dense()[1:2], alone.masks.layer(0).dense())


def test_an_empty_batch_gives_empty_predictions() -> None:
    predictions = _decoder()(*_inputs(0), all_layers=True)
    assert predictions.class_logits.shape == (LAYERS, 0, QUERIES, CLASSES + 1)


def test_frames_of_a_clip_share_their_queries() -> None:
    predictions = _decoder()(*_inputs(4), num_frames=2)
    assert predictions.class_logits.shape == (1, 2, QUERIES, CLASSES + 1)
    assert predictions.masks.layer(0).dense().shape == (2, QUERIES, 2, 24, 32)


def test_an_image_shown_twice_is_classified_like_the_image() -> None:
    features, mask_features = _inputs(1)
    clip = _decoder()(features.repeat(2, 1, 1, 1), mask_features.repeat(2, 1, 1, 1), num_frames=2)
    # Doubling every key leaves attention unchanged, and the 2-D encoding does not tell frames apart.
    torch.testing.assert_close(clip.class_logits, _decoder()(features, mask_features).class_logits)


def test_every_parameter_is_trained() -> None:
    decoder = _decoder(dropout=0.1).train()
    predictions = decoder(*_inputs(2), all_layers=True)
    (predictions.class_logits.square().sum() + predictions.masks.dense().square().sum()).backward()
    assert not [name for name, parameter in decoder.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(
    ("in_channels", "enforce", "projected"), [(HIDDEN, False, False), (HIDDEN, True, True), (8, False, True)]
)
def test_the_input_is_projected_only_where_needed(in_channels: int, enforce: bool, projected: bool) -> None:
    decoder = _decoder(in_channels=in_channels, enforce_input_projection=enforce)
    assert any(name.startswith("input_proj") for name in decoder.state_dict()) == projected
    decoder(*_inputs(1, in_channels))


def test_a_config_selects_its_parts() -> None:
    overrides = ["MODEL.MASK_FORMER.ENC_LAYERS", "2", "MODEL.MASK_FORMER.CHECKPOINT_TRANSFORMER", "True"]
    decoder = StandardTransformerDecoder(load_config(MASKFORMER, overrides), 2048, True)
    encoder_layers, decoder_layers = decoder.transformer.encoder.layers, decoder.transformer.decoder.layers
    assert (len(encoder_layers), len(decoder_layers)) == (2, 6)
    assert decoder.transformer.encoder.checkpoint_layers and decoder.transformer.decoder.checkpoint_layers
    assert decoder_layers[0].dropout.p == decoder_layers[0].multihead_attn.dropout == 0.1
    assert decoder.deep_supervision


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"],
            "TRANSFORMER_IN_FEATURE='multi_scale_pixel_decoder' .* set .*DECODER_NAME MultiScaleMaskedTransformer",
        ),
        (["MODEL.MASK_FORMER.DEC_LAYERS", "0"], r"MODEL\.MASK_FORMER\.DEC_LAYERS=0 must be at least 1"),
        (["MODEL.MASK_FORMER.ENC_LAYERS", "-1"], r"MODEL\.MASK_FORMER\.ENC_LAYERS=-1 must be at least 0"),
    ],
)
def test_settings_that_cannot_be_built_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StandardTransformerDecoder(load_config(MASKFORMER, overrides), 2048, True)
