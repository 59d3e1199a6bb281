"""Run lengths of objects in videos: frames side by side."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former.evaluation.tracks import joined_frames


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize("seed", range(40))
def test_joined_frames_are_the_run_lengths_of_the_frames_side_by_side(seed) -> None:
    rng = np.random.default_rng(seed)
    height, width, length = (int(side) for side in rng.integers(1, 9, 3))
    masks = rng.random((length, height, width)) < rng.choice([0, 0.1, 0.5, 0.9, 1])
    shapes = [encode(mask) if mask.any() or rng.random() < 0.5 else None for mask in masks]
    picture = np.concatenate(list(masks), axis=1)
    track = joined_frames(shapes, (height, width))
    assert track.mask == encode(picture)
    assert track.areas_T.tolist() == masks.sum(axis=(1, 2)).tolist()


def test_long_runs_and_many_of_them_are_joined_exactly() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((700, 900), dtype=bool)
    mask[100:600, 200:800] = rng.random((500, 600)) < 0.7
    assert joined_frames([encode(mask)] * 2, mask.shape).mask == encode(np.concatenate([mask] * 2, axis=1))


def test_every_kind_of_mask_is_joined_alike() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:12, 5:25] = True
    compressed = encode(mask)
    counts = np.diff(np.flatnonzero(np.diff(mask.T.ravel().astype(int), prepend=0, append=0)), prepend=0)
    uncompressed = {"size": [20, 30], "counts": [*counts.tolist(), mask.size - int(counts.sum())]}
    text = {**compressed, "counts": compressed["counts"].decode()}
    polygons = [[5, 4, 25, 4, 25, 12, 5, 12]]
    expected = joined_frames([compressed] * 4, (20, 30)).mask
    assert joined_frames([compressed, uncompressed, text, polygons], (20, 30)).mask == expected


def test_masks_of_another_size_than_the_video_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a mask has \(height, width\) \(3, 4\), the frames of its video \(4, 3\)"):
        joined_frames([encode(np.ones((3, 4), dtype=bool))], (4, 3))


def test_run_lengths_that_do_not_fill_a_frame_are_refused() -> None:
    whole = encode(np.ones((4, 3), dtype=bool))
    for counts in ([5, 2], [-1, 13], [2**40, 1]):
        with pytest.raises(ValueError, match="run lengths are damaged: they do not fill 4x3 pixels"):
            joined_frames([whole, {"size": [4, 3], "counts": counts}], (4, 3))
