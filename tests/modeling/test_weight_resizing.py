"""Position tables and queries of another size keep what they have learned."""

from __future__ import annotations

import pytest
import torch

from mask2former.modeling.weight_resizing import resized

TABLE = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
POSITION = "backbone.absolute_pos_embed"
QUERIES = "sem_seg_head.predictor.query_feat.weight"


def _plane(side: int) -> torch.Tensor:
    """(side, side) values that grow linearly from -1 to 1 in both directions, at cell centers."""
    centers = (torch.arange(side) + 0.5) / side * 2 - 1
    return centers[:, None] + 3 * centers[None, :]


@pytest.mark.parametrize(("old_window", "new_window"), [(4, 7), (7, 4)])
def test_a_bias_table_keeps_its_shape_as_a_function_of_the_offset(old_window, new_window):
    old_side, new_side = 2 * old_window - 1, 2 * new_window - 1
    table = torch.stack([_plane(old_side).flatten(), -_plane(old_side).flatten()], dim=1)
    new = resized(TABLE, table, (new_side**2, 2))
    inner = slice(2, -2)  # apart from the border, bicubic interpolation nearly keeps planes
    assert new[:, 0].view(new_side, new_side)[inner, inner] == pytest.approx(_plane(new_side)[inner, inner], abs=0.1)
    assert torch.equal(new[:, 1], -new[:, 0])
    assert new[new_side**2 // 2, 0] == pytest.approx(0, abs=1e-5), "the offset 0 stays in the middle"


@pytest.mark.parametrize("shape", [(169, 4), (170, 3), (1, 169, 3)])
def test_a_bias_table_of_other_heads_or_of_no_window_is_not_resized(shape):
    assert resized(TABLE, torch.zeros(49, 3), shape) is None


def test_an_absolute_position_embedding_is_resized_as_a_picture():
    embedding = _plane(8).expand(1, 5, 8, 8)
    new = resized(POSITION, embedding, (1, 5, 16, 16))
    assert new[0, 3, 4:-4, 4:-4] == pytest.approx(_plane(16)[4:-4, 4:-4], abs=0.1)


def test_an_absolute_position_embedding_of_swins_authors_is_a_list_of_tokens():
    embedding = torch.randn(1, 5, 4, 4)
    tokens = embedding.flatten(2).transpose(1, 2)
    assert resized(POSITION, tokens, (1, 5, 4, 4)) == pytest.approx(embedding, abs=1e-5)
    assert resized(POSITION, tokens, (1, 6, 4, 4)) is None


def test_a_vit_keeps_its_class_token_apart_from_the_patches():
    patches = _plane(8).flatten().view(1, 64, 1).expand(1, 64, 5)
    tokens = torch.cat([torch.full((1, 1, 5), 9.0), patches], dim=1)
    new = resized("backbone.model.pos_embed", tokens, (1, 257, 5))
    assert (new[:, 0] == 9).all()
    assert new[0, 1:, 0].view(16, 16)[4:-4, 4:-4] == pytest.approx(_plane(16)[4:-4, 4:-4], abs=0.1)
    without_class = resized("backbone.model.pos_embed", tokens, (1, 256, 5))
    assert torch.equal(without_class, new[:, 1:])


@pytest.mark.parametrize("shape", [(1, 261, 5), (1, 257, 6)])
def test_a_vit_with_other_tokens_or_width_is_not_resized(shape):
    assert resized("backbone.model.pos_embed", torch.zeros(1, 65, 5), shape) is None


def test_fewer_queries_are_the_first_ones():
    queries = torch.randn(9, 4)
    assert torch.equal(resized(QUERIES, queries, (5, 4)), queries[:5])


def test_more_queries_are_copies_that_differ_a_little():
    queries = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    new = resized(QUERIES, queries, (10, 256))
    assert torch.equal(new[:4], queries)
    for row in range(4, 10):
        distance = (new[row] - queries[row % 4]).std()
        assert 0.03 < distance < 0.07, "copies lie at 5 % of the spread from the query that they copy"
    assert len(new.unique(dim=0)) == 10
    assert torch.equal(new, resized(QUERIES, queries, (10, 256))), "all ranks get the same"


def test_queries_of_another_width_are_another_architecture():
    assert resized(QUERIES, torch.zeros(9, 4), (9, 5)) is None


def test_other_tensors_are_not_resized():
    assert resized("backbone.res2.weight", torch.zeros(9, 4), (5, 4)) is None
