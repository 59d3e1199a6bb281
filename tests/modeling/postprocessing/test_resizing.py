"""Masks at the output size, by rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.postprocessing import MaskSizes, resized_to_output
from mask2former.modeling.postprocessing.resizing import COLUMNS_AT_ONCE, RowStream, resizing
from tests.golden import random_normal

# (cells, sizes): padding or none, an output that is the image, larger, smaller by far, one pixel; cells that are
# neither of stride 4 nor fewer than pixels.
CASES = {
    "padded, output larger": ((16, 16), MaskSizes((64, 64), (40, 50), (83, 71))),
    "output is the image": ((16, 16), MaskSizes((64, 64), (40, 50), (40, 50))),
    "nothing padded": ((16, 16), MaskSizes((64, 64), (64, 64), (64, 64))),
    "output much smaller": ((16, 16), MaskSizes((64, 64), (61, 64), (3, 2))),
    "output much larger": ((4, 4), MaskSizes((16, 16), (13, 14), (120, 2 * COLUMNS_AT_ONCE + 7))),
    "one pixel": ((8, 8), MaskSizes((32, 32), (1, 1), (1, 1))),
    "one pixel becomes many": ((8, 8), MaskSizes((32, 32), (1, 1), (5, 6))),
    "cells of another stride": ((25, 40), MaskSizes((64, 64), (40, 50), (33, 71))),
    "more cells than pixels": ((90, 80), MaskSizes((64, 64), (40, 50), (30, 40))),
}


def _published(logits: Tensor, sizes: MaskSizes) -> Tensor:
    """Two steps over whole maps: to the padded size, then without the padding to the output."""
    padded = F.interpolate(logits[None], size=sizes.padded, mode="bilinear", align_corners=False)
    image = padded[:, :, : sizes.image[0], : sizes.image[1]]
    return F.interpolate(image, size=sizes.output, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("case", CASES)
def test_one_matrix_for_each_axis_equals_the_published_two_steps(case: str) -> None:
    cells, sizes = CASES[case]
    logits = 10 * random_normal(1, 3, *cells)
    torch.testing.assert_close(resized_to_output(logits, sizes), _published(logits, sizes), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows_at_once", [1, 2, 7])
@pytest.mark.parametrize("case", CASES)
def test_rows_do_not_depend_on_how_many_are_made_at_once(case: str, rows_at_once: int) -> None:
    cells, sizes = CASES[case]
    logits, height = 10 * random_normal(2, 3, *cells), sizes.output[0]
    stream = resizing(logits, sizes).stream()
    blocks = [stream.rows(start, min(start + rows_at_once, height)) for start in range(0, height, rows_at_once)]
    torch.testing.assert_close(torch.cat(blocks, dim=1), resized_to_output(logits, sizes), rtol=1e-5, atol=1e-5)


def test_rows_that_are_left_out_change_nothing() -> None:
    cells, sizes = CASES["padded, output larger"]
    logits = random_normal(3, 2, *cells)
    stream, expected = resizing(logits, sizes).stream(), resized_to_output(logits, sizes)
    for start, stop in [(3, 5), (5, 6), (40, 47), (82, 83)]:
        torch.testing.assert_close(stream.rows(start, stop), expected[:, start:stop])


def test_every_row_of_the_source_is_asked_for_at_most_once() -> None:
    cells, sizes = CASES["padded, output larger"]
    masks, asked = resizing(random_normal(4, 2, *cells), sizes), []
    source = masks.open_source()
    stream = RowStream(
        lambda start, stop: asked.extend(range(start, stop)) or source(start, stop), masks.height, masks.width
    )
    for row in range(sizes.output[0]):
        stream.rows(row, row + 1)
    assert asked == list(range(11))  # of 16: the image ends at the middle of cell 10


def test_no_masks_are_no_masks_at_the_output_size() -> None:
    assert resized_to_output(torch.zeros(0, 4, 4), MaskSizes((16, 16), (10, 12), (20, 30))).shape == (0, 20, 30)
