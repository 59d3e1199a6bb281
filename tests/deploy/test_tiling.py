"""Large pictures: what tiles show together is what the picture shows, within any budget."""

from __future__ import annotations

import numpy as np
import pytest

from mask2former.deploy.large_pictures import LargePicture, Part
from mask2former.deploy.mask_cleanup import MaskCleanup
from mask2former.deploy.runtime import Segmenter, load
from mask2former.deploy.tiling import segment_large
from tests.deploy.painted import PaintedSegmenter, painted, same_partition

TASKS = ("panoptic", "instance", "semantic")
UNLIMITED = 10**6


@pytest.fixture(scope="module")
def picture():
    return painted((190, 260), 60)


@pytest.fixture(scope="module")
def digits():
    return load("weights/digits_panoptic.safetensors")


def assert_equal(first, second):
    assert (first.task, first.height, first.width) == (second.task, second.height, second.width)
    assert first.segments == second.segments
    for field in ("label_map", "confidence"):
        one, other = getattr(first, field), getattr(second, field)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype and np.array_equal(one, other)


def assert_consistent(result):
    """Masks, areas, boxes and map say the same."""
    for number, segment in enumerate(result.segments, start=1):
        mask = segment.bitmap()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert segment.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) and segment.area == mask.sum() > 0
        if result.label_map is not None:
            label = segment.category if result.task == "semantic" else number
            assert np.array_equal(result.label_map == label, mask)


@pytest.mark.parametrize("task", TASKS)
def test_one_tile_gives_the_plain_result_bit_for_bit(task, digits):
    image = np.random.default_rng(0).integers(0, 256, (96, 130, 3), dtype=np.uint8)
    image[20:60, 30:80] //= 4
    assert_equal(segment_large(digits, image, task, tile=130, overlap=48), digits(image, task))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (100, 40), (48, 1)])
def test_tiles_show_together_what_the_picture_shows(task, tile, overlap, picture):
    segmenter = PaintedSegmenter()
    result, whole = segment_large(segmenter, picture, task, tile=tile, overlap=overlap), segmenter(picture, task)
    assert set(segmenter.sizes[:-1]) == {(tile, tile)}
    assert_consistent(result)
    assert len(result.segments) == len(whole.segments)
    if task == "semantic":
        assert np.array_equal(result.label_map, whole.label_map)
        np.testing.assert_allclose(result.confidence, 1, atol=1e-6)
    elif task == "panoptic":
        assert same_partition(result.label_map, whole.label_map)
    key = lambda segment: (segment.category, segment.box)  # noqa: E731
    for found, expected in zip(sorted(result.segments, key=key), sorted(whole.segments, key=key), strict=True):
        assert found.mask == expected.mask and found.name == expected.name and found.is_thing == expected.is_thing
        assert found.score == pytest.approx(expected.score)


@pytest.mark.parametrize("task", TASKS)
def test_a_budget_moves_arrays_to_files_and_changes_nothing(task, picture, tmp_path, monkeypatch):
    monkeypatch.setattr("mask2former.deploy.tiling._peak_memory", lambda: 2**20)
    options = {"tile": 64, "overlap": 16}
    within = segment_large(
        PaintedSegmenter(), picture, task, memory_budget_mb=1, scratch=tmp_path, progress=iter, **options
    )
    assert_equal(within, segment_large(PaintedSegmenter(), picture, task, **options))
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_the_network_alone_exceeds_is_refused(picture):
    with pytest.raises(ValueError, match="already took .* MiB .* budget of 1 MiB: choose smaller tiles"):
        segment_large(PaintedSegmenter(), picture, tile=64, overlap=16, memory_budget_mb=1)


class WithoutData(LargePicture):
    """A painted picture of which a part has no data."""

    def __init__(self, image, valid):
        self.image, self.is_valid, self.size = image, valid, image.shape[:2]

    def read(self, rows, columns):
        return Part(self.image[rows, columns], self.is_valid[rows, columns])


@pytest.mark.parametrize("task", TASKS)
def test_pixels_without_data_belong_to_nothing_and_empty_tiles_are_skipped(task, picture):
    valid = np.ones(picture.shape[:2], dtype=bool)
    valid[:90, :150] = False
    segmenter = PaintedSegmenter()
    result = segment_large(segmenter, WithoutData(picture, valid), task, tile=64, overlap=16)
    assert 0 < len(segmenter.sizes) < 24
    assert_consistent(result)
    for segment in result.segments:
        assert not segment.bitmap()[~valid].any()
    if task == "semantic":
        assert np.array_equal(result.label_map < 0, ~valid) and (result.confidence[~valid] == 0).all()
    if task == "panoptic":
        assert np.array_equal(result.label_map == 0, ~valid)


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_without_any_data_has_no_segments(task, picture):
    result = segment_large(
        PaintedSegmenter(), WithoutData(picture, np.zeros(picture.shape[:2], dtype=bool)), task, tile=64, overlap=16
    )
    assert result.segments == ()


def test_one_tile_with_gaps_is_not_the_plain_result(picture):
    valid = np.ones(picture.shape[:2], dtype=bool)
    valid[:, :100] = False
    result = segment_large(PaintedSegmenter(), WithoutData(picture, valid), tile=300, overlap=16)
    assert (result.label_map[:, :100] == 0).all() and (result.label_map[:, 100:] > 0).all()


def test_semantic_scores_are_averaged_smoothly_across_seams():
    class Unsure(PaintedSegmenter):
        """Takes its left half for sky and its right half for ground, more or less."""

        def semantic_scores(self, image):
            share = np.linspace(0.9, 0.1, image.shape[1], dtype=np.float32)
            return np.stack([share + 0 * image[..., 0], 1 - share + 0 * image[..., 0], *2 * [0 * image[..., 0]]])

    picture = np.zeros((20, 100, 3), dtype=np.uint8)
    result = segment_large(Unsure(), picture, "semantic", tile=60, overlap=20)
    # From 40 to 60 the left tile, which says ground, gives way to the right one, which says sky.
    assert np.abs(np.diff(result.confidence[0])).max() < 0.1
    assert (result.label_map[0, 30:45] == 1).all() and (result.label_map[0, 56:70] == 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_clean_up_sees_whole_segments(task):
    picture = np.ones((40, 100, 3), dtype=np.uint8) * (1, 0, 0)
    picture[10:20, 35:65] = (3, 0, 1)  # 300 pixels, cut by the seam
    picture[30:33, 30:33] = (4, 0, 2)
    options = {"tile": 60, "overlap": 20, "cleanup": MaskCleanup(min_area=200)}
    result = segment_large(PaintedSegmenter(), picture.astype(np.uint8), task, **options)
    assert ("cat" in [segment.name for segment in result.segments]) and len(result.segments) == 2 - (task == "instance")


def test_a_threshold_drops_what_is_below_it(picture):
    options = {"tile": 64, "overlap": 16}
    assert (
        segment_large(PaintedSegmenter(), picture, "instance", cleanup=MaskCleanup(threshold=0.95), **options).segments
        == ()
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (15, 64)])
@pytest.mark.parametrize("task", TASKS)
def test_very_small_and_thin_pictures(task, size):
    result = segment_large(PaintedSegmenter(), np.full((*size, 3), (1, 0, 0), np.uint8), task, tile=64, overlap=16)
    assert (result.height, result.width) == size and len(result.segments) == (task != "instance")


def test_an_empty_picture_a_wrong_task_and_tiles_smaller_than_the_overlap_are_refused(picture):
    segmenter = PaintedSegmenter()
    with pytest.raises(ValueError, match="no pixels"):
        segment_large(segmenter, picture[:0])
    with pytest.raises(ValueError, match="task 'boxes' is unknown; this model has panoptic, instance, semantic"):
        segment_large(segmenter, picture, "boxes")
    with pytest.raises(ValueError, match="overlap 128 must be less than half of tile 100"):
        segment_large(segmenter, picture, tile=100)
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        segment_large(segmenter, picture[..., 0])


def test_progress_goes_through_all_tiles(picture):
    seen = []

    def progress(tiles):
        assert len(tiles) == 24
        for tile in tiles:
            seen.append(tile.place)
            yield tile

    segment_large(PaintedSegmenter(), picture, tile=64, overlap=16, progress=progress)
    assert len(seen) == 24


def test_scores_of_the_eager_model_are_those_behind_its_labels(digits):
    image = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    scores, result = digits.semantic_scores(image), digits(image, "semantic")
    assert scores.shape == (13, 96, 96) and np.array_equal(scores.argmax(axis=0), result.label_map)
    np.testing.assert_allclose(scores.max(axis=0) / scores.sum(axis=0), result.confidence, rtol=1e-5)


def test_a_model_that_gives_labels_only_votes_with_their_confidence(digits):
    image = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    whole = digits._predictors["semantic"]
    labels_only = Segmenter(
        classes=digits.classes, predictors={"semantic": lambda images: whole(images)}, description={}
    )
    votes, result = labels_only.semantic_scores(image), digits(image, "semantic")
    assert np.array_equal(votes.argmax(axis=0), result.label_map)
    assert np.array_equal(votes.sum(axis=0), result.confidence)
