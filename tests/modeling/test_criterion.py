"""Training losses."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.masks import MaskLogits, Predictions
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.point_sampling import uniform_points
from mask2former.modeling.targets import Target
from tests.golden import random_normal
from tests.host_copies import HostCopies
from tests.modeling.fixed_points import fixed_points

LAYERS, QUERIES, CLASSES, CHANNELS = 3, 6, 4, 5
POINTS, NO_OBJECT_WEIGHT = 40, 0.1
COST_WEIGHTS = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 4.0}
LOSS_WEIGHTS = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 4.0}
CPU = torch.device("cpu")


def _criterion(**changes) -> SetCriterion:
    settings = {
        "num_classes": CLASSES,
        "matcher": HungarianMatcher(num_points=POINTS, draw_points=fixed_points, **COST_WEIGHTS),
        "loss_weights": LOSS_WEIGHTS,
        "no_object_weight": NO_OBJECT_WEIGHT,
        "num_points": POINTS,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
        "draw_points": fixed_points,
        **changes,
    }
    return SetCriterion(**settings)


def _predictions(num_clips: int, num_frames: int = 1, seed: int = 0) -> Predictions:
    """Leaves that take gradients."""
    return Predictions(
        (2 * random_normal(seed, LAYERS, num_clips, QUERIES, CLASSES + 1)).requires_grad_(),
        MaskLogits(
            random_normal(seed + 1, LAYERS, num_clips, QUERIES, CHANNELS).requires_grad_(),
            random_normal(seed + 2, num_clips, num_frames, CHANNELS, 6, 8).requires_grad_(),
        ),
    )


def _target(num_targets: int, num_frames: int = 1, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (num_targets,), generator=generator)
    return Target(labels, torch.rand(num_targets, num_frames, 24, 32, generator=generator) > 0.5)


def _clip(predictions: Predictions, clip: int) -> Predictions:
    masks = MaskLogits(predictions.masks.embeddings[:, clip : clip + 1], predictions.masks.features[clip : clip + 1])
    return Predictions(predictions.class_logits[:, clip : clip + 1], masks)


def _total_and_gradients(losses: dict[str, Tensor], predictions: Predictions) -> list[Tensor]:
    total = torch.stack(list(losses.values())).sum()
    leaves = [predictions.class_logits, *predictions.masks]
    return [total.detach(), *torch.autograd.grad(total, leaves)]


def _sampled(maps: Tensor, points: Tensor) -> Tensor:
    return F.grid_sample(maps[:, None].float(), 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def _reference_losses(predictions: Predictions, targets: list[Target]) -> dict[str, Tensor]:
    """The losses written out: layer by layer, clip by clip, pair by pair."""
    matcher = HungarianMatcher(num_points=POINTS, draw_points=fixed_points, **COST_WEIGHTS)
    dense = predictions.masks.dense()
    num_masks = max(1, sum(len(target.labels) for target in targets))
    losses = {}
    for layer in range(LAYERS):
        class_sum = weight_sum = mask_sum = dice_sum = torch.tensor(0.0)
        for clip, target in enumerate(targets):
            one_layer = Predictions(
                predictions.class_logits[layer : layer + 1, clip : clip + 1],
                MaskLogits(
                    predictions.masks.embeddings[layer : layer + 1, clip : clip + 1],
                    predictions.masks.features[clip : clip + 1],
                ),
            )
            matching = matcher(one_layer, [target])
            pairs = dict(zip(matching.query.tolist(), matching.target.tolist(), strict=True))
            for query in range(QUERIES):
                label = target.labels[pairs[query]] if query in pairs else CLASSES
                weight = 1.0 if query in pairs else NO_OBJECT_WEIGHT
                class_sum = class_sum - weight * predictions.class_logits[layer, clip, query].log_softmax(0)[label]
                weight_sum = weight_sum + weight
            for query, index in pairs.items():
                for frame in range(target.masks.shape[1]):
                    logits = dense[layer, clip, query, frame][None]
                    candidates = fixed_points(1, 3 * POINTS, CPU)
                    uncertain = _sampled(logits, candidates).abs().argsort(dim=1)[0, : POINTS * 3 // 4]
                    points = torch.cat([candidates[:, uncertain], fixed_points(1, POINTS // 4, CPU)], dim=1)
                    x, t = _sampled(logits, points)[0], _sampled(target.masks[index, frame][None], points)[0]
                    mask_sum = mask_sum + F.binary_cross_entropy_with_logits(x, t)
                    dice_sum = dice_sum + 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
        suffix = "" if layer == LAYERS - 1 else f"_{layer}"
        losses[f"loss_ce{suffix}"] = LOSS_WEIGHTS["loss_ce"] * class_sum / weight_sum
        losses[f"loss_mask{suffix}"] = LOSS_WEIGHTS["loss_mask"] * mask_sum / num_masks
        losses[f"loss_dice{suffix}"] = LOSS_WEIGHTS["loss_dice"] * dice_sum / num_masks
    return losses


@pytest.mark.parametrize("num_targets", [(3, 2), (0, 4), (0, 0), (QUERIES + 3, 1)])
@pytest.mark.parametrize("num_frames", [1, 2])
def test_losses_are_those_written_out_layer_by_layer(num_targets: tuple[int, int], num_frames: int) -> None:
    predictions = _predictions(2, num_frames)
    targets = [_target(count, num_frames, seed) for seed, count in enumerate(num_targets)]
    losses, expected = _criterion()(predictions, targets), _reference_losses(predictions, targets)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            losses[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    if any(num_targets):
        gradients = zip(
            _total_and_gradients(losses, predictions), _total_and_gradients(expected, predictions), strict=True
        )
        for gradient, expected_gradient in gradients:
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_without_targets_mask_losses_are_zero_and_still_reach_every_prediction() -> None:
    predictions = _predictions(2)
    losses = _criterion()(predictions, [_target(0), _target(0)])
    assert all(value == 0 for name, value in losses.items() if not name.startswith("loss_ce"))
    assert all(value.requires_grad for value in losses.values())
    _, class_gradient, embedding_gradient, feature_gradient = _total_and_gradients(losses, predictions)
    assert class_gradient.abs().sum() > 0
    assert embedding_gradient.eq(0).all()
    assert feature_gradient.eq(0).all()


def test_an_empty_mask_is_a_target_like_any_other() -> None:
    target = _target(3)
    predictions = _predictions(1)
    losses = _criterion()(predictions, [target._replace(masks=torch.zeros_like(target.masks))])
    assert all(value.isfinite() and value > 0 for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in _total_and_gradients(losses, predictions))


def test_only_the_given_layers_are_named() -> None:
    predictions = _predictions(1)
    last = Predictions(
        predictions.class_logits[-1:], MaskLogits(predictions.masks.embeddings[-1:], predictions.masks.features)
    )
    losses, of_all_layers = _criterion()(last, [_target(2)]), _criterion()(predictions, [_target(2)])
    assert list(losses) == ["loss_ce", "loss_mask", "loss_dice"]
    for name, value in losses.items():
        torch.testing.assert_close(of_all_layers[name], value)


def test_the_order_of_targets_does_not_matter() -> None:
    predictions, target = _predictions(1), _target(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    losses = _criterion()(predictions, [target])
    permuted = _criterion()(predictions, [Target(target.labels[order], target.masks[order])])
    for name, value in losses.items():
        torch.testing.assert_close(permuted[name], value)


def test_the_order_of_targets_does_not_matter_for_drawn_points_either() -> None:
    predictions, target = _predictions(1), _target(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    # Random points, as in training: they go with the queries, not with the targets.
    criterion = SetCriterion(
        num_classes=CLASSES,
        matcher=HungarianMatcher(num_points=POINTS, **COST_WEIGHTS),
        loss_weights=LOSS_WEIGHTS,
        no_object_weight=NO_OBJECT_WEIGHT,
        num_points=POINTS,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    torch.manual_seed(0)
    losses = criterion(predictions, [target])
    torch.manual_seed(0)
    permuted = criterion(predictions, [Target(target.labels[order], target.masks[order])])
    for name, value in losses.items():
        torch.testing.assert_close(permuted[name], value)


def test_micro_batches_add_up_to_the_joined_batch() -> None:
    predictions, targets = _predictions(3), [_target(5, seed=1), _target(0), _target(2, seed=2)]
    criterion = _criterion()
    joined = _total_and_gradients(criterion(predictions, targets), predictions)

    normalizer = criterion.normalizer([len(target.labels) for target in targets], QUERIES)
    parts = [criterion(_clip(predictions, clip), [target], normalizer) for clip, target in enumerate(targets)]
    added = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
    for value, expected in zip(_total_and_gradients(added, predictions), joined, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_an_image_is_a_clip_of_one_frame_and_every_frame_counts_in_full() -> None:
    predictions, target = _predictions(1), _target(1)
    image = _criterion()(predictions, [target])
    features = predictions.masks.features.expand(-1, 3, -1, -1, -1)
    frozen = predictions._replace(masks=predictions.masks._replace(features=features))
    clip = _criterion()(frozen, [target._replace(masks=target.masks.expand(-1, 3, -1, -1))])
    for name, value in image.items():
        times = 1 if name.startswith("loss_ce") else 3
        torch.testing.assert_close(clip[name], times * value)


def test_losses_recomputed_in_pieces_are_the_same() -> None:
    targets = [_target(4, seed=1), _target(3, seed=2)]
    at_once, in_pieces = _predictions(2), _predictions(2)
    expected = _total_and_gradients(_criterion()(at_once, targets), at_once)
    criterion = _criterion(max_kept_cells=5 * (6 * 8 + POINTS))  # five pairs at a time, of 12 and 9
    found = _total_and_gradients(criterion(in_pieces, targets), in_pieces)
    for value, expected_value in zip(found, expected, strict=True):
        torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-6)


def test_a_cost_that_is_not_finite_spoils_every_loss_and_gradient() -> None:
    predictions = _predictions(1)
    embeddings = predictions.masks.embeddings.detach().clone()
    embeddings[0, 0, 2] = float("nan")
    spoiled = predictions._replace(masks=predictions.masks._replace(embeddings=embeddings.requires_grad_()))
    losses = _criterion()(spoiled, [_target(2)])
    assert all(value.isnan() for value in losses.values())
    _, class_gradient, *_ = _total_and_gradients(losses, spoiled)
    assert class_gradient.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_losses_are_float32_under_autocast(dtype: torch.dtype) -> None:
    predictions, targets = _predictions(1), [_target(3)]
    mixed = Predictions(
        predictions.class_logits.to(dtype),
        predictions.masks._replace(embeddings=predictions.masks.embeddings.to(dtype)),
    )
    expected = _criterion()(Predictions(*[mixed.class_logits.float(), mixed.masks]), targets)
    with torch.amp.autocast(device_type="cpu", dtype=torch.bfloat16):
        losses = _criterion()(mixed, targets)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name])


def test_normalizers_follow_from_the_number_of_targets() -> None:
    criterion = _criterion()
    normalizer = criterion.normalizer([2, 0, QUERIES + 4], QUERIES)
    assert normalizer.num_masks == QUERIES + 6
    assert normalizer.class_weight_sum.item() == pytest.approx((2 + QUERIES) + NO_OBJECT_WEIGHT * (4 + QUERIES))
    assert criterion.normalizer([0, 0], QUERIES).num_masks == 1


def test_workers_add_up_their_counts_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Adding:
        def wait(self) -> None:
            calls.append("wait")

    def all_reduce(sums: Tensor, *, async_op: bool) -> Adding:
        calls.append("async" if async_op else "waits")
        sums *= 2  # another worker with as much
        return Adding()

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    normalizer = _criterion().normalizer([3], QUERIES)
    assert calls == ["async"]
    assert normalizer.num_masks == 3
    assert normalizer.class_weight_sum.item() == pytest.approx(3 + NO_OBJECT_WEIGHT * (QUERIES - 3))
    assert calls == ["async", "wait"]


def test_the_host_waits_for_the_costs_only() -> None:
    predictions, targets, criterion = (
        _predictions(3),
        [_target(3), _target(0), _target(2)],
        _criterion(draw_points=uniform_points),
    )
    criterion.matcher.draw_points = uniform_points
    with HostCopies() as copies:
        losses = criterion(predictions, targets)
        torch.stack(list(losses.values())).sum().backward()
    assert copies == ["cpu"]


def test_the_class_weights_are_part_of_a_checkpoint() -> None:
    state = _criterion().state_dict()
    assert list(state) == ["empty_weight"]
    assert state["empty_weight"].tolist() == pytest.approx([1, 1, 1, 1, NO_OBJECT_WEIGHT])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"oversample_ratio": 0.5}, "OVERSAMPLE_RATIO=0.5"),
        ({"importance_sample_ratio": 1.5}, "IMPORTANCE_SAMPLE_RATIO=1.5"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _criterion(**changes)
