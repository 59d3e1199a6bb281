"""Matching of queries and ground truth."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling import matcher
from mask2former.modeling.masks import MaskLogits, Predictions
from mask2former.modeling.matcher import HungarianMatcher, Matching, assign, pair_costs
from mask2former.modeling.point_sampling import runs_cpp, sample_logits, uniform_points
from mask2former.modeling.targets import Target
from tests.golden import golden, random_normal
from tests.host_copies import HostCopies
from tests.modeling.fixed_points import fixed_points

LAYERS, QUERIES, CLASSES, CHANNELS = 3, 6, 4, 5
POINTS = 30
CPU = torch.device("cpu")


def _matcher(**changes) -> HungarianMatcher:
    settings = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "num_points": POINTS}
    return HungarianMatcher(**{**settings, "draw_points": fixed_points, **changes})


def _predictions(num_clips: int, num_frames: int = 1, seed: int = 0) -> Predictions:
    return Predictions(
        2 * random_normal(seed, LAYERS, num_clips, QUERIES, CLASSES + 1),
        MaskLogits(
            random_normal(seed + 1, LAYERS, num_clips, QUERIES, CHANNELS),
            random_normal(seed + 2, num_clips, num_frames, CHANNELS, 6, 8),
        ),
    )


def _target(num_targets: int, num_frames: int = 1, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (num_targets,), generator=generator)
    return Target(labels, torch.rand(num_targets, num_frames, 24, 32, generator=generator) > 0.5)


def _pairs(matching: Matching, clip: int, layer: int) -> list[tuple[int, int]]:
    chosen = (matching.clip == clip) & (matching.layer == layer)
    return list(zip(matching.query[chosen].tolist(), matching.target[chosen].tolist(), strict=True))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("max_numbers", [2**20, 30, 1])  # all 20 points at once, 7 at a time, one by one
def test_costs_equal_the_original(backend: str, max_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "cpp" and not runs_cpp(torch.empty(0)):
        pytest.skip("the C++ library is not built")
    monkeypatch.setattr(matcher, "runs_cpp", lambda tensor: backend == "cpp")
    expected = golden()["operators"]["losses"]
    logits, targets = 3 * random_normal(51, 4, 20), (random_normal(52, 3, 20) > 0).float()
    masks = MaskLogits(torch.eye(4)[None], logits[None, None, :, None])  # a product whose result is `logits`
    mask_costs, dice_costs = pair_costs(masks, targets[None, :, None], max_numbers=max_numbers)
    torch.testing.assert_close(mask_costs[0], torch.tensor(expected["cost_mask"]))
    torch.testing.assert_close(dice_costs[0], torch.tensor(expected["cost_dice"]))


@pytest.mark.parametrize("num_frames", [1, 3])
def test_costs_are_those_of_every_pair_written_out(num_frames: int) -> None:
    predictions, target = _predictions(2, num_frames), _target(4, num_frames)
    costs = _matcher().costs(predictions, [_target(2, num_frames), target])
    assert costs.shape == (LAYERS, 2, QUERIES, 4)

    points = fixed_points(num_frames, POINTS, CPU)
    dense = predictions.masks.dense()
    for layer, query, index in [(0, 0, 0), (1, 5, 3), (2, 3, 1)]:
        x = sample_logits(dense[layer, 1, query], points).flatten()
        t = sample_logits(target.masks[index].float(), points).flatten()
        mask_cost = F.binary_cross_entropy_with_logits(x, t)
        dice_cost = 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
        class_cost = -predictions.class_logits[layer, 1, query].softmax(0)[target.labels[index]]
        expected = 2 * class_cost + 5 * mask_cost + 5 * dice_cost
        torch.testing.assert_close(costs[layer, 1, query, index], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_targets", [0, 1, QUERIES])
def test_every_target_is_matched_exactly_once_in_every_layer(num_targets: int) -> None:
    matching = _matcher()(_predictions(1), [_target(num_targets)])
    assert matching.num_pairs == [LAYERS * num_targets]
    for layer in range(LAYERS):
        queries, targets = [list(side) for side in zip(*_pairs(matching, 0, layer), strict=True)] or ([], [])
        assert sorted(targets) == list(range(num_targets))
        assert queries == sorted(set(queries))


def test_of_more_targets_than_queries_the_cheapest_are_matched() -> None:
    matching = _matcher()(_predictions(1), [_target(QUERIES + 3)])
    assert matching.num_pairs == [LAYERS * QUERIES]
    for layer in range(LAYERS):
        queries, targets = zip(*_pairs(matching, 0, layer), strict=True)
        assert list(queries) == list(range(QUERIES))
        assert len(set(targets)) == QUERIES


def test_the_total_cost_is_the_least_possible() -> None:
    predictions, target = _predictions(1), _target(3)
    costs = _matcher().costs(predictions, [target])[:, 0]
    matching = _matcher()(predictions, [target])
    for layer in range(LAYERS):
        found = sum(costs[layer, query, index] for query, index in _pairs(matching, 0, layer))
        least = min(
            sum(costs[layer, query, index] for index, query in enumerate(choice))
            for choice in permutations(range(QUERIES), 3)
        )
        torch.testing.assert_close(found, least)


def test_clips_are_matched_as_if_each_were_alone() -> None:
    predictions, targets = _predictions(3), [_target(2, seed=1), _target(0), _target(5, seed=2)]
    together = _matcher()(predictions, targets)
    for clip, target in enumerate(targets):
        one_clip = slice(clip, clip + 1)
        masks = MaskLogits(predictions.masks.embeddings[:, one_clip], predictions.masks.features[one_clip])
        alone = _matcher()(Predictions(predictions.class_logits[:, one_clip], masks), [target])
        for layer in range(LAYERS):
            assert _pairs(together, clip, layer) == _pairs(alone, 0, layer)


def test_a_permutation_of_the_targets_permutes_the_matching() -> None:
    predictions, target = _predictions(1), _target(4)
    order = torch.tensor([2, 0, 3, 1])
    matching = _matcher()(predictions, [target])
    permuted = _matcher()(predictions, [Target(target.labels[order], target.masks[order])])
    assert torch.equal(matching.query, permuted.query)
    assert torch.equal(matching.target, order[permuted.target])


def _logits_with(value: float, queries: list[int], predictions: Predictions) -> Predictions:
    embeddings = predictions.masks.embeddings.clone()
    embeddings[1, 0, queries] = value
    return predictions._replace(masks=predictions.masks._replace(embeddings=embeddings))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_is_never_matched(value: float) -> None:
    predictions = _logits_with(value, [0, 2, 3, 5], _predictions(1))
    matching = _matcher()(predictions, [_target(3)])
    assert not matching.all_finite
    assert [len(_pairs(matching, 0, layer)) for layer in range(LAYERS)] == [3, 2, 3]
    assert [query for query, _ in _pairs(matching, 0, 1)] == [1, 4]  # the two that are left
    assert _matcher()(_predictions(1), [_target(3)]).all_finite


def test_only_not_finite_costs_leave_everything_unmatched() -> None:
    matching = _matcher()(_logits_with(float("nan"), list(range(QUERIES)), _predictions(1)), [_target(3)])
    assert _pairs(matching, 0, 1) == []


def test_a_finite_pair_is_preferred_whatever_it_costs() -> None:
    nan = float("nan")
    queries, targets = assign(np.array([[1e30, nan], [0.0, 1e30]]))
    assert (queries.tolist(), targets.tolist()) == ([0, 1], [0, 1])
    queries, targets = assign(np.array([[-1.0, 5.0], [nan, nan]]))
    assert (queries.tolist(), targets.tolist()) == ([0], [0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    predictions, target = _predictions(1), _target(4)
    predictions = predictions._replace(
        class_logits=predictions.class_logits.to(dtype),
        masks=predictions.masks._replace(embeddings=predictions.masks.embeddings.to(dtype)),
    )
    expected = _matcher()(predictions, [target])
    with torch.amp.autocast(device_type="cpu", dtype=torch.bfloat16):
        matching = _matcher()(predictions, [target])
    assert torch.equal(matching.query, expected.query)
    assert torch.equal(matching.target, expected.target)


def test_the_host_waits_once_however_many_clips_and_layers() -> None:
    predictions, targets = _predictions(3), [_target(3), _target(0), _target(2)]
    with HostCopies() as copies:
        _matcher(draw_points=uniform_points)(predictions, targets)
    assert copies == ["cpu"]


def test_nothing_to_match_by_is_refused() -> None:
    with pytest.raises(ValueError, match="CLASS_WEIGHT, MASK_WEIGHT and DICE_WEIGHT are all 0"):
        _matcher(class_weight=0.0, mask_weight=0.0, dice_weight=0.0)
    with pytest.raises(ValueError, match="TRAIN_NUM_POINTS=0"):
        _matcher(num_points=0)
