"""Means over time, checked against the plain formula."""

from __future__ import annotations

import pytest
import torch

from mask2former.deploy.semantic_smoothing import smoothed_scores


@pytest.mark.parametrize(("smoothing", "latency"), [(0.5, 0), (0.9, 2), (0.3, 20)])
def test_every_frame_counts_by_its_distance(smoothing: float, latency: int) -> None:
    scores = list(torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
    copies = [score.clone() for score in scores]
    results = list(smoothed_scores(iter(scores), smoothing, latency))
    assert len(results) == len(scores)
    for now, result in enumerate(results):
        weights = [smoothing ** abs(now - other) if other <= now + latency else 0.0 for other in range(len(scores))]
        expected = sum(weight * score for weight, score in zip(weights, scores, strict=True)) / sum(weights)
        torch.testing.assert_close(result, expected)
    assert all(torch.equal(score, copy) for score, copy in zip(scores, copies, strict=True))


def test_a_result_needs_no_more_frames_than_its_latency() -> None:
    num_read = 0

    def read():
        nonlocal num_read
        for _ in range(6):
            num_read += 1
            yield torch.zeros(1, 2, 2)

    for number, _ in enumerate(smoothed_scores(read(), 0.5, 2)):
        assert num_read == min(number + 3, 6)


def test_where_the_size_changes_the_past_and_the_future_are_resized() -> None:
    scores = [torch.full((2, 4, 6), 1.0), torch.full((2, 8, 12), 4.0), torch.full((2, 4, 6), 1.0)]
    results = list(smoothed_scores(iter(scores), 0.5, 1))
    assert [tuple(result.shape) for result in results] == [(2, 4, 6), (2, 8, 12), (2, 4, 6)]
    torch.testing.assert_close(results[1], torch.full((2, 8, 12), (0.5 + 4 + 0.5) / 2))
