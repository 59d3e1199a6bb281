"""Encoder and decoder layers of DETR's transformer: what they compute, dropout, recomputation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.transformer_decoder.layers import MultiheadAttention, clip_tokens
from mask2former.modeling.transformer_decoder.transformer import Transformer, TransformerDecoder, TransformerEncoder

WIDTH, HEADS, INNER = 16, 4, 24


def _options(**changes: Any) -> dict[str, Any]:
    return {
        "num_layers": 2,
        "embed_dim": WIDTH,
        "num_heads": HEADS,
        "feedforward_dim": INNER,
        "dropout": 0.0,
        "pre_norm": False,
        **changes,
    }


def _encoder(**changes: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(**_options(**changes))


def _decoder(**changes: Any) -> TransformerDecoder:
    torch.manual_seed(0)
    return TransformerDecoder(**_options(**changes))


def _tokens(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(*size, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_tokens_of_a_clip_are_ordered_by_frame_row_and_column() -> None:
    maps = torch.arange(2 * 3 * 2 * 2.0).view(6, 1, 2, 2)  # two clips of three frames
    tokens = clip_tokens(maps, num_frames=3)
    assert tokens.shape == (2, 12, 1)
    assert torch.equal(tokens.flatten(), torch.arange(24.0))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_encoder_without_positions_is_that_of_torch(pre_norm: bool) -> None:
    ours = _encoder(num_layers=1, pre_norm=pre_norm).eval()
    reference = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, batch_first=True, norm_first=pre_norm)
    reference.load_state_dict(ours.layers[0].state_dict())
    tokens = _tokens(2, 5)
    expected = ours.norm(reference.eval()(tokens))
    torch.testing.assert_close(ours(tokens, torch.zeros(5, WIDTH)), expected)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_decoder_without_positions_is_that_of_torch(pre_norm: bool) -> None:
    ours = _decoder(num_layers=1, pre_norm=pre_norm).eval()
    reference = nn.TransformerDecoderLayer(WIDTH, HEADS, INNER, batch_first=True, norm_first=pre_norm)
    reference.load_state_dict(ours.layers[0].state_dict())
    memory = _tokens(2, 7)
    expected = ours.norm(reference.eval()(torch.zeros(2, 3, WIDTH), memory))
    torch.testing.assert_close(ours(torch.zeros(3, WIDTH), memory, memory, all_layers=False)[0], expected)


def test_positions_reach_queries_and_keys_but_not_values() -> None:
    encoder = _encoder(num_layers=1)
    nn.init.zeros_(encoder.layers[0].self_attn.in_proj_weight[: 2 * WIDTH])  # no query, no key: only values are left
    tokens = _tokens(1, 5)
    torch.testing.assert_close(encoder(tokens, _tokens(5)), encoder(tokens, torch.zeros(5, WIDTH)))
    attentive = _encoder(num_layers=1)
    assert not torch.allclose(attentive(tokens, _tokens(5)), attentive(tokens, torch.zeros(5, WIDTH)))


def test_only_pre_norm_has_a_norm_after_the_encoder_even_without_layers() -> None:
    tokens, position = _tokens(1, 5), _tokens(5)
    assert torch.equal(_encoder(num_layers=0)(tokens, position), tokens)
    normalized = _encoder(num_layers=0, pre_norm=True)(tokens, position)
    torch.testing.assert_close(normalized.mean(-1), torch.zeros(1, 5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_last_of_all_layers_is_the_only_one_of_inference(pre_norm: bool) -> None:
    decoder = _decoder(num_layers=3, pre_norm=pre_norm)
    arguments = (_tokens(4), _tokens(2, 5), _tokens(2, 5, seed=2))
    every, last = decoder(*arguments, all_layers=True), decoder(*arguments, all_layers=False)
    assert every.shape == (3, 2, 4, WIDTH) and last.shape == (1, 2, 4, WIDTH)
    torch.testing.assert_close(every[-1:], last)


def test_equal_query_positions_give_equal_queries() -> None:
    # Queries start without content: only their positions tell them apart.
    queries = _decoder()(_tokens(1).expand(3, -1), _tokens(2, 5), _tokens(2, 5), all_layers=False)
    torch.testing.assert_close(queries[0, :, 0], queries[0, :, 2])


def test_cells_may_come_in_any_order() -> None:
    transformer = Transformer(encoder=_encoder(), decoder=_decoder())
    tokens, position, queries = _tokens(2, 6), _tokens(6, seed=2), _tokens(3, seed=3)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        transformer(tokens[:, order], position[order], queries, all_layers=True),
        transformer(tokens, position, queries, all_layers=True),
    )


def test_dropout_acts_only_while_training() -> None:
    transformer = Transformer(encoder=_encoder(dropout=0.5), decoder=_decoder(dropout=0.5))
    arguments = (_tokens(2, 6), _tokens(6, seed=2), _tokens(3, seed=3))
    without = Transformer(encoder=_encoder(), decoder=_decoder())
    assert torch.equal(transformer.eval()(*arguments, all_layers=True), without(*arguments, all_layers=True))
    dropped = transformer.train()(*arguments, all_layers=True)
    assert not torch.allclose(dropped, transformer(*arguments, all_layers=True))


def test_attention_weights_are_dropped_only_while_training() -> None:
    torch.manual_seed(0)
    attention = MultiheadAttention(embed_dim=WIDTH, num_heads=HEADS, dropout=1.0)
    tokens = _tokens(1, 5)
    assert attention.eval()(tokens, tokens, tokens).abs().max() > 0
    # Without weights nothing is read, and the bias of the output is zero.
    assert torch.equal(attention.train()(tokens, tokens, tokens), torch.zeros(1, 5, WIDTH))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_checkpointing_changes_no_value_and_no_gradient(pre_norm: bool, dropout: float) -> None:
    results = []
    for checkpoint_layers in (False, True):
        changes = {"pre_norm": pre_norm, "dropout": dropout, "checkpoint_layers": checkpoint_layers}
        transformer = Transformer(encoder=_encoder(**changes), decoder=_decoder(**changes)).train()
        torch.manual_seed(5)
        outputs = transformer(_tokens(2, 6), _tokens(6, seed=2), _tokens(3, seed=3), all_layers=True)
        (outputs * _tokens(2, 2, 3, seed=4)).sum().backward()
        results.append([outputs, *(parameter.grad for parameter in transformer.parameters())])
    assert all(gradient is not None for gradient in results[0])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)
