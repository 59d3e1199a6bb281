"""Run lengths beside pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former.run_lengths import draw_runs, encode_rows, run_counts, run_counts_of_all


def random_mask(size: tuple[int, int], share: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=size) < share


def encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 60), (33, 1), (1, 50)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_drawn_runs_are_the_mask(size, share) -> None:
    mask = random_mask(size, share)
    canvas = np.zeros(size, dtype=bool)
    assert draw_runs(encode(mask), canvas) == mask.any()
    assert np.array_equal(canvas, mask)


def test_long_runs_have_counts_of_several_characters() -> None:
    mask = np.zeros((900, 700), dtype=bool)
    mask[100:850, 3:690] = True
    mask[200, 600:] = False
    canvas = np.zeros_like(mask)
    draw_runs(encode(mask), canvas)
    assert np.array_equal(canvas, mask)


def test_only_columns_of_the_mask_are_touched() -> None:
    mask = np.zeros((5, 9), dtype=bool)
    mask[1:3, 4:6] = True
    canvas = np.ones((5, 9), dtype=bool)
    draw_runs(encode(mask), canvas)
    assert canvas[:, :4].all() and canvas[:, 6:].all() and np.array_equal(canvas[:, 4:6], mask[:, 4:6])


def test_counts_may_be_text_bytes_or_numbers() -> None:
    mask = random_mask((6, 7), 0.3)
    counts = encode(mask)["counts"]
    plain = run_counts(counts)
    assert np.array_equal(run_counts(counts.decode()), plain) and np.array_equal(run_counts(plain.tolist()), plain)
    assert plain.sum() == mask.size and plain[1::2].sum() == mask.sum()


def test_counts_of_several_masks_are_read_together() -> None:
    masks = [
        random_mask((6, 7), 0.3),
        np.zeros((900, 700), dtype=bool),
        random_mask((40, 60), 0.5),
        random_mask((2, 2), 1),
    ]
    texts = [encode(mask)["counts"] for mask in masks]
    counts, num_runs = run_counts_of_all([texts[0], texts[1].decode(), *texts[2:]])
    for text, part in zip(texts, np.split(counts, np.cumsum(num_runs)[:-1]), strict=True):
        assert np.array_equal(part, run_counts(text))
    assert [len(array) for array in run_counts_of_all([])] == [0, 0]
    with pytest.raises(ValueError, match="run lengths are damaged"):
        run_counts_of_all([texts[2][:1] + b"o", texts[0]])


@pytest.mark.parametrize("seed", range(60))
def test_packed_rows_are_encoded_as_pycocotools_does(seed) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 40, 2)) < rng.choice([0, 0.02, 0.5, 0.98, 1])
    expected = encode(mask)
    found = encode_rows(np.packbits(mask, axis=1), mask.shape[1])
    assert found == {"size": list(mask.shape), "counts": expected["counts"].decode()}


def test_runs_of_no_pixel_draw_nothing() -> None:
    canvas = np.zeros((2, 3), dtype=bool)
    assert draw_runs({"counts": [1, 0, 2, 2, 0, 1]}, canvas)
    assert np.flatnonzero(canvas.ravel(order="F")).tolist() == [3, 4, 5]
    assert not draw_runs({"counts": [4, 0, 2]}, np.zeros((2, 3), dtype=bool))


@pytest.mark.parametrize("counts", [[2, 3], [-2, 8], b"", "5", b"\x7f\x10", b"o"])
def test_damaged_run_lengths_are_refused(counts) -> None:
    with pytest.raises(ValueError, match="run lengths are damaged"):
        draw_runs({"counts": counts}, np.zeros((2, 3), dtype=bool))
