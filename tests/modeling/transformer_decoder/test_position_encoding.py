"""Sine position encodings."""

import pytest
import torch

from mask2former.modeling.transformer_decoder.position_encoding import (
    SinePositionEncoding2D,
    SinePositionEncoding3D,
    masked_sine_position_encoding_2d,
    sine_position_encoding_2d,
    sine_position_encoding_3d,
)
from tests.golden import golden

OPERATORS = golden()["operators"]


def channels_first(encoding: torch.Tensor) -> torch.Tensor:
    return encoding.movedim(-1, -3)


def test_a_map_is_encoded_as_published() -> None:
    expected = torch.tensor(OPERATORS["sine_2d_num_pos_feats4_h2_w3"])
    torch.testing.assert_close(channels_first(sine_position_encoding_2d(2, 3, 4)), expected, atol=1e-6, rtol=0)


def test_padding_is_not_counted_as_published() -> None:
    padding = torch.zeros(1, 3, 4, dtype=torch.bool)
    padding[:, 2:] = True
    padding[:, :, 3:] = True
    expected = torch.tensor(OPERATORS["sine_2d_masked"]["value"])
    encoding = masked_sine_position_encoding_2d(padding, 2)
    torch.testing.assert_close(channels_first(encoding)[0], expected, atol=1e-6, rtol=0)


def test_unnormalized_positions_count_rows_and_columns_as_published() -> None:
    expected = torch.tensor(OPERATORS["sine_2d_unnormalised"]["value"])
    encoding = sine_position_encoding_2d(2, 2, 2, normalize=False)
    torch.testing.assert_close(channels_first(encoding), expected, atol=1e-6, rtol=0)


def test_a_clip_is_encoded_as_published() -> None:
    expected = torch.tensor(OPERATORS["sine_3d_num_pos_feats2_t2_h2_w2"])
    torch.testing.assert_close(channels_first(sine_position_encoding_3d(2, 2, 2, 2)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_mask_without_padding_changes_nothing(normalize: bool) -> None:
    masked = masked_sine_position_encoding_2d(torch.zeros(2, 5, 7, dtype=torch.bool), 8, normalize=normalize)
    plain = sine_position_encoding_2d(5, 7, 8, normalize=normalize)
    torch.testing.assert_close(masked, plain.expand(2, -1, -1, -1))


def test_only_the_temporal_encoding_tells_frames_apart() -> None:
    spatial = SinePositionEncoding2D(8)(3, 2, 5).unflatten(0, (3, 10))
    temporal = SinePositionEncoding3D(8)(3, 2, 5).unflatten(0, (3, 10))
    assert torch.equal(spatial[0], spatial[2])
    assert (temporal[0] - temporal[2]).abs().max() > 0.1


def test_tokens_are_ordered_by_row() -> None:
    tokens = SinePositionEncoding2D(8)(1, 3, 4)
    assert torch.equal(tokens[1 * 4 + 2], sine_position_encoding_2d(3, 4, 4)[1, 2])


def test_encodings_stay_out_of_checkpoints() -> None:
    module = SinePositionEncoding3D(8)
    module(2, 3, 3)
    assert not module.state_dict()


def test_a_width_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        SinePositionEncoding2D(6)


def test_a_mask_of_wrong_type_is_refused() -> None:
    with pytest.raises(ValueError, match="bool"):
        masked_sine_position_encoding_2d(torch.zeros(1, 2, 2), 4)
