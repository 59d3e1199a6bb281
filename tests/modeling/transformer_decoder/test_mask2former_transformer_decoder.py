"""The masked decoder: what queries may see, what is returned, what is recomputed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.config import load_config
from mask2former.modeling.masks import MaskLogits
from mask2former.modeling.transformer_decoder import layers
from mask2former.modeling.transformer_decoder.layers import MultiheadAttention, attention_by_products
from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    attended_positions,
)
from mask2former.modeling.transformer_decoder.position_encoding import SinePositionEncoding2D, SinePositionEncoding3D
from mask2former.registry import TRANSFORMER_DECODER_REGISTRY
from tests.golden import CONFIGS

HIDDEN, MASK_DIM, QUERIES, CLASSES = 16, 12, 6, 4


def _decoder(**changes: Any) -> MultiScaleMaskedTransformerDecoder:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "in_channels": HIDDEN,
        "num_classes": CLASSES,
        "hidden_dim": HIDDEN,
        "num_queries": QUERIES,
        "num_heads": 4,
        "feedforward_dim": 24,
        "num_layers": 4,
        "pre_norm": False,
        "mask_dim": MASK_DIM,
        "enforce_input_projection": False,
        "position_encoding": SinePositionEncoding2D(HIDDEN),
    }
    return MultiScaleMaskedTransformerDecoder(**(options | changes))


def _inputs(frames: int, in_channels: int = HIDDEN) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(frames, in_channels, s, s + 1, generator=generator) for s in (2, 4, 8)]
    return features, torch.randn(frames, MASK_DIM, 16, 18, generator=generator)


@pytest.mark.parametrize("scores_at_once", [1, 2 * 2 * 5 * 30, 10**6])
def test_attention_by_products_is_attention(monkeypatch: pytest.MonkeyPatch, scores_at_once: int) -> None:
    monkeypatch.setattr(layers, "SCORES_AT_ONCE", scores_at_once)
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, length, 2, 8).transpose(1, 2) for length in (5, 30, 30))
    attend = torch.rand(3, 1, 5, 30) < 0.3
    attend[..., 0] = True
    found = attention_by_products(query, key, value, attend)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_query_looks_only_inside_its_mask() -> None:
    embeddings = torch.tensor([[[1.0], [-1.0]]])
    features = torch.tensor([[[[[3.0, -3.0]]]]])
    attend = attended_positions(MaskLogits(embeddings, features))
    assert attend.tolist() == [[[True, False], [False, True]]]


def test_a_query_with_an_empty_mask_looks_everywhere() -> None:
    attend = attended_positions(MaskLogits(torch.ones(1, 1, 1), torch.full((1, 1, 1, 2, 2), -5.0)))
    assert attend.all()


def test_an_emptiness_is_judged_over_the_whole_clip() -> None:
    features = torch.tensor([-5.0, 5.0]).view(1, 2, 1, 1, 1)  # absent in the first frame, present in the second
    assert attended_positions(MaskLogits(torch.ones(1, 1, 1), features)).tolist() == [[[False, True]]]


def test_attention_equals_torch_multihead_attention() -> None:
    torch.manual_seed(0)
    ours = MultiheadAttention(embed_dim=HIDDEN, num_heads=4)
    reference = nn.MultiheadAttention(HIDDEN, 4, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    reference.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, HIDDEN), torch.randn(2, 7, HIDDEN), torch.randn(2, 7, HIDDEN)
    attend = torch.rand(2, 5, 7) > 0.4
    attend[..., 0] = True
    expected, _ = reference(query, key, value, attn_mask=~attend.repeat_interleave(4, dim=0))
    torch.testing.assert_close(ours(query, key, value, attend), expected)


def test_attention_refuses_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.MASK_FORMER\.NHEADS"):
        MultiheadAttention(embed_dim=10, num_heads=4)


def test_all_layers_end_with_the_only_layer_of_inference() -> None:
    decoder = _decoder()
    every = decoder(*_inputs(2), all_layers=True)
    last = decoder(*_inputs(2))
    assert every.class_logits.shape == (5, 2, QUERIES, CLASSES + 1)
    assert last.class_logits.shape == (1, 2, QUERIES, CLASSES + 1)
    torch.testing.assert_close(every.class_logits[-1:], last.class_logits)
    torch.testing.assert_close(every.masks.layer(-1).dense(), last.masks.layer(0).dense())


def test_a_batch_equals_its_clips_one_by_one() -> None:
    decoder = _decoder()
    features, mask_features = _inputs(3)
    together = decoder(features, mask_features)
    for clip in range(3):
        alone = decoder([f[clip : clip + 1] for f in features], mask_features[clip : clip + 1])
        torch.testing.assert_close(together.class_logits[:, clip : clip + 1], alone.class_logits)


def test_frames_of_a_clip_share_their_queries() -> None:
    predictions = _decoder()(*_inputs(4), num_frames=2)
    assert predictions.class_logits.shape == (1, 2, QUERIES, CLASSES + 1)
    assert predictions.masks.layer(0).dense().shape == (2, QUERIES, 2, 16, 18)


def test_an_image_shown_twice_gives_the_same_mask_in_both_frames() -> None:
    features, mask_features = _inputs(1)
    twice = [torch.cat([f, f]) for f in features]
    clip = _decoder()(twice, torch.cat([mask_features, mask_features]), num_frames=2)
    image = _decoder()(features, mask_features)
    # Doubling every key leaves attention unchanged, and the 2-D encoding does not tell frames apart.
    torch.testing.assert_close(clip.class_logits, image.class_logits)
    torch.testing.assert_close(clip.masks.features[:, 0], clip.masks.features[:, 1])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_checkpointing_changes_no_value_and_no_gradient(pre_norm: bool) -> None:
    gradients = []
    for checkpoint_layers in (False, True):
        decoder = _decoder(pre_norm=pre_norm, checkpoint_layers=checkpoint_layers).train()
        predictions = decoder(*_inputs(2), all_layers=True)
        (predictions.class_logits.square().sum() + predictions.masks.dense().square().sum()).backward()
        gradients.append([p.grad for p in decoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("in_channels", "enforce", "projected"), [(HIDDEN, False, False), (HIDDEN, True, True), (8, False, True)]
)
def test_inputs_are_projected_only_where_needed(in_channels: int, enforce: bool, projected: bool) -> None:
    decoder = _decoder(in_channels=in_channels, enforce_input_projection=enforce)
    assert any(name.startswith("input_proj") for name in decoder.state_dict()) == projected
    decoder(*_inputs(1, in_channels))


def test_a_wrong_number_of_maps_is_refused() -> None:
    features, mask_features = _inputs(1)
    with pytest.raises(ValueError, match=r"3 feature maps, got 2: .*IN_FEATURES"):
        _decoder()(features[:2], mask_features)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_dropout_of_the_config_is_not_for_this_decoder(pre_norm: bool) -> None:
    decoder = _decoder(pre_norm=pre_norm).train()
    assert torch.equal(decoder(*_inputs(1)).class_logits, decoder(*_inputs(1)).class_logits)


@pytest.mark.parametrize(
    ("name", "position_encoding"),
    [
        ("MultiScaleMaskedTransformerDecoder", SinePositionEncoding2D),
        ("VideoMultiScaleMaskedTransformerDecoder", SinePositionEncoding3D),
    ],
)
def test_the_name_for_video_differs_in_the_position_encoding_alone(name: str, position_encoding: type) -> None:
    cfg = load_config(CONFIGS / "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml")
    decoder = TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, 256, True)
    assert type(decoder) is MultiScaleMaskedTransformerDecoder
    assert type(decoder.position_encoding) is position_encoding


def test_the_order_of_frames_matters_to_the_3d_encoding_alone() -> None:
    features, mask_features = _inputs(2)
    reversed_features, reversed_masks = [f.flip(0) for f in features], mask_features.flip(0)
    for encoding, order_matters in ((SinePositionEncoding2D, False), (SinePositionEncoding3D, True)):
        decoder = _decoder(position_encoding=encoding(HIDDEN))
        forward = decoder(features, mask_features, num_frames=2).class_logits
        backward = decoder(reversed_features, reversed_masks, num_frames=2).class_logits
        assert torch.allclose(forward, backward, atol=1e-5) != order_matters


@pytest.mark.parametrize("name", ["MultiScaleMaskedTransformerDecoder", "VideoMultiScaleMaskedTransformerDecoder"])
def test_a_single_map_is_refused_and_the_decoder_that_reads_it_is_named(name: str) -> None:
    # MaskFormer's own files say "res5" and, older than the key, name no decoder.
    overrides = ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", name]
    cfg = load_config(CONFIGS / "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml", overrides)
    message = f"TRANSFORMER_IN_FEATURE='res5' .*'{name}' .*DECODER_NAME StandardTransformerDecoder"
    with pytest.raises(ValueError, match=message):
        TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, 2048, True)


def test_a_head_without_mask_classification_is_refused() -> None:
    path = CONFIGS / "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
    for name in ("MultiScaleMaskedTransformerDecoder", "VideoMultiScaleMaskedTransformerDecoder"):
        cfg = load_config(path, ["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", name])
        with pytest.raises(ValueError, match=f"DECODER_NAME='{name}' always classifies"):
            TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, 256, False)
