"""The meta-architecture: pictures in, losses or results out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from mask2former import MaskFormer
from mask2former.modeling.masks import MaskLogits
from mask2former.modeling.postprocessing import instance_inference, panoptic_inference, semantic_inference
from mask2former.packed_masks import PackedMasks
from tests.golden import deviation, golden, golden_panoptic_model, picture, random_normal
from tests.tiny_model import (
    NUM_CLASSES,
    NUM_QUERIES,
    THING_IDS,
    distributed_losses,
    gradients,
    tiny_config,
    tiny_model,
    tiny_sample,
)

TEST = "MODEL.MASK_FORMER.TEST"
ONLY_SEMANTIC = (f"{TEST}.INSTANCE_ON", False, f"{TEST}.PANOPTIC_ON", False)
WITHOUT_SEMANTIC = (f"{TEST}.SEMANTIC_ON", False)


@pytest.fixture(scope="module")
def model() -> MaskFormer:
    return tiny_model()


def _confident(model: MaskFormer) -> MaskFormer:
    """Queries that are objects of several classes with masks of several sizes; those of fresh weights hardly differ."""
    decoder = model.sem_seg_head.predictor
    last = decoder.mask_embed.layers[-1]
    with torch.no_grad():
        decoder.class_embed.weight.copy_(random_normal(2, *decoder.class_embed.weight.shape))
        last.weight.copy_(random_normal(11, *last.weight.shape))
        last.bias.zero_()
    return model.eval()


def _losses(model: MaskFormer, samples: list[dict[str, Any]], **arguments: Any) -> dict[str, Tensor]:
    return model.train()(samples, **arguments)


@torch.no_grad()
def _results(model: MaskFormer, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return model.eval()(samples)


def _assert_equal_results(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    if "sem_seg" in expected:
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-4, atol=1e-5)
    if "panoptic_seg" in expected:
        assert len(found["panoptic_seg"][1]) == len(expected["panoptic_seg"][1])
        assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    if "instances" in expected:
        torch.testing.assert_close(found["instances"].scores, expected["instances"].scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(found["instances"].pred_masks, expected["instances"].pred_masks)
        assert torch.equal(found["instances"].pred_classes, expected["instances"].pred_classes)


def test_full_inference_equals_the_original() -> None:
    expected = golden()["full_inference_R50_coco_panoptic"]["outputs"]
    model = golden_panoptic_model()
    batch = [{"image": picture(21, (80, 112)), "height": 60, "width": 90}, {"image": picture(22, (100, 70))}]
    for result, figures in zip(_results(model, batch), expected, strict=True):
        assert deviation(result["sem_seg"], figures["sem_seg"]) < 1e-3

        segment_ids, segments_info = result["panoptic_seg"]
        assert [{**info, "score": None} for info in segments_info] == [
            {**info, "score": None} for info in figures["panoptic_seg"]["segments_info"]
        ]
        areas = segment_ids.flatten().bincount().tolist()
        for segment_id, area in figures["panoptic_seg"]["area_by_id"].items():
            # The rounding of one CPU and number of threads or another moves up to 9 pixels (4562; in float64 4563).
            assert areas[int(segment_id)] == pytest.approx(area, abs=10)

        instances = result["instances"]
        assert len(instances) == figures["instances"]["num"]
        assert instances.scores[:10].tolist() == pytest.approx(figures["instances"]["top10_scores_sorted"], abs=1e-5)
        assert instances.scores.sum().item() == pytest.approx(figures["instances"]["scores"]["sum"], rel=1e-4)
        classes = instances.pred_classes.bincount().tolist()
        assert {str(index): count for index, count in enumerate(classes) if count} == figures["instances"][
            "classes_hist"
        ]
        assert instances.pred_masks.sum().item() == pytest.approx(figures["instances"]["masks_sum"], rel=1e-3)


@pytest.mark.parametrize("sizes", [[(64, 64)] * 3, [(40, 50), (64, 33), (64, 64)]], ids=["equal", "equal when padded"])
def test_a_batch_of_equal_sizes_gives_what_each_image_gives_alone(sizes: list[tuple[int, int]]) -> None:
    model = _confident(tiny_model())
    samples = [tiny_sample(seed=seed, size=size) for seed, size in enumerate(sizes)]
    for together, sample in zip(_results(model, samples), samples, strict=True):
        (alone,) = _results(model, [sample])
        _assert_equal_results(together, alone)


def test_results_are_those_of_all_masks_at_the_output_size() -> None:
    """However few masks are resized, and in whatever order: the published two-step resizing of all of them."""
    model = _confident(tiny_model(f"{TEST}.OBJECT_MASK_THRESHOLD", 0.3))
    sample = {**tiny_sample(size=(40, 50)), "height": 33, "width": 71}
    (result,) = _results(model, [sample])

    with torch.no_grad():
        images, _ = model._images([sample])
        outputs = model.sem_seg_head(model.backbone(images.tensor))
        masks = F.interpolate(outputs["pred_masks"], (64, 64), mode="bilinear", align_corners=False)
        masks = F.interpolate(masks[:, :, :40, :50], (33, 71), mode="bilinear", align_corners=False)[0]
    logits = outputs["pred_logits"][0]
    thresholds = {"object_mask_threshold": 0.3, "overlap_threshold": 0.0}
    expected = {
        "sem_seg": semantic_inference(logits, masks),
        "panoptic_seg": panoptic_inference(logits, masks, thing_ids=THING_IDS, **thresholds),
        "instances": instance_inference(logits, masks, topk=100, thing_ids=THING_IDS),
    }
    _assert_equal_results(result, expected)
    assert len(expected["panoptic_seg"][1]) > 1
    assert 0 < len(expected["instances"]) < NUM_QUERIES * NUM_CLASSES

    (without_semantic,) = _results(
        _confident(tiny_model(f"{TEST}.OBJECT_MASK_THRESHOLD", 0.3, *WITHOUT_SEMANTIC)), [sample]
    )
    del expected["sem_seg"]
    _assert_equal_results(without_semantic, expected)


def test_a_map_merged_before_resizing_is_smooth_where_one_merged_after_is_sharp() -> None:
    """SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE chooses what is resized to the output: masks or the merged map."""
    sample = {**tiny_sample(size=(40, 50)), "height": 80, "width": 100}
    small = {**sample, "height": 40, "width": 50}
    after = _confident(tiny_model(*ONLY_SEMANTIC))
    before = _confident(tiny_model(*ONLY_SEMANTIC, f"{TEST}.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", True))
    (small_map,) = (result["sem_seg"] for result in _results(after, [small]))
    (merged_first,) = (result["sem_seg"] for result in _results(after, [sample]))
    expected = F.interpolate(small_map[None], (80, 100), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(merged_first, expected)
    torch.testing.assert_close(_results(before, [small])[0]["sem_seg"], small_map)
    resized_first = _results(before, [sample])[0]["sem_seg"]
    assert resized_first.shape == merged_first.shape
    assert not torch.allclose(resized_first, merged_first, atol=1e-4)


def test_padding_is_zero_after_normalization(model: MaskFormer) -> None:
    image = tiny_sample(size=(40, 50))["image"].float()
    gray = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1).expand(3, 64, 64).clone()
    gray[:, :40, :50] = image
    padded_by_model = _results(model, [{"image": image}])[0]["sem_seg"]
    padded_by_hand = _results(model, [{"image": gray}])[0]["sem_seg"]
    torch.testing.assert_close(padded_by_model, padded_by_hand[:, :40, :50])


@pytest.mark.parametrize(("divisibility", "padded"), [(32, (64, 64)), (-1, (64, 64)), (48, (48, 96)), (0, (40, 50))])
def test_images_are_padded_to_multiples(divisibility: int, padded: tuple[int, int]) -> None:
    model = tiny_model("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", divisibility)
    assert model.backbone.size_divisibility == 32
    images, _ = model._images([tiny_sample(size=(40, 50))])
    assert images.tensor.shape[-2:] == padded


def test_the_order_of_targets_does_not_matter(model: MaskFormer) -> None:
    sample = tiny_sample(4)
    permuted = {**sample, "instances": sample["instances"][torch.tensor([2, 0, 3, 1])]}
    expected = _losses(model, [sample])
    for name, value in _losses(model, [permuted]).items():
        torch.testing.assert_close(value, expected[name])


def test_losses_of_micro_batches_add_up_to_those_of_the_joined_batch(model: MaskFormer) -> None:
    samples = [tiny_sample(4, 0), tiny_sample(0, 1), tiny_sample(1, 2)]
    joined = _losses(model, samples)
    model.zero_grad()
    sum(joined.values()).backward()
    expected = gradients(model)

    micro_batches = [samples[:1], samples[1:]]
    normalizer = model.loss_normalizer(micro_batches)
    parts = [_losses(model, micro_batch, normalizer=normalizer) for micro_batch in micro_batches]
    model.zero_grad()
    for part in parts:
        sum(part.values()).backward()
    for name, value in joined.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_two_ranks_have_the_loss_and_gradient_of_the_joined_batch(model: MaskFormer, tmp_path: Path) -> None:
    cases = [[3, 1], [2, 0]]  # numbers of targets; in the second case one rank has none
    torch.multiprocessing.spawn(distributed_losses, args=(2, tmp_path, cases), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, num_targets in enumerate(cases):
        losses = _losses(model, [tiny_sample(count, rank) for rank, count in enumerate(num_targets)])
        model.zero_grad()
        sum(losses.values()).backward()
        (first_losses, first_gradients), (second_losses, second_gradients) = (results[case] for results in ranks)
        for name, value in losses.items():
            average = (first_losses[name] + second_losses[name]) / 2
            torch.testing.assert_close(average, value.detach(), rtol=1e-5, atol=1e-5)
        for name, gradient in gradients(model).items():
            assert torch.equal(first_gradients[name], second_gradients[name])
            torch.testing.assert_close(first_gradients[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_targets", [[0, 0], [NUM_QUERIES + 3, 0]])
def test_unusual_numbers_of_targets_train_every_parameter(num_targets: list[int], model: MaskFormer) -> None:
    losses = _losses(model, [tiny_sample(count, seed) for seed, count in enumerate(num_targets)])
    model.zero_grad()
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_an_image_is_a_clip_of_one_frame(model: MaskFormer) -> None:
    sample = tiny_sample(3)
    expected, found = _losses(model, [sample]), _losses(model, [{**sample, "image": [sample["image"]]}])
    assert expected == found
    _assert_equal_results(
        *(_results(model, [{**sample, "image": image}])[0] for image in (sample["image"], [sample["image"]]))
    )


def test_clips_of_several_frames_train(model: MaskFormer) -> None:
    first, second = tiny_sample(2, 0), tiny_sample(2, 1)
    instances = Instances((64, 64), gt_classes=first["instances"].gt_classes)
    instances.gt_masks = torch.stack([first["instances"].gt_masks, second["instances"].gt_masks], dim=1)
    losses = _losses(model, [{"image": [first["image"], second["image"]], "instances": instances}])
    assert all(value.isfinite() for value in losses.values())
    with pytest.raises(ValueError, match="same number of frames, got \\[1, 2\\]"):
        _losses(model, [first, {"image": [first["image"], second["image"]], "instances": instances}])
    with pytest.raises(ValueError, match="clips of 2 frames"):
        _results(model, [{"image": [first["image"], second["image"]]}])


def test_packed_masks_train_like_plain_ones(model: MaskFormer) -> None:
    sample, packed = tiny_sample(3, size=(40, 50)), tiny_sample(3, size=(40, 50))
    packed["instances"].gt_masks = PackedMasks.pack(packed["instances"].gt_masks)
    assert _losses(model, [packed]) == _losses(model, [sample])


def test_masks_are_padded_like_the_image(model: MaskFormer) -> None:
    """Targets of an unpadded image: the same loss as when the picture and its masks are padded by hand."""
    sample = tiny_sample(3, size=(40, 50))
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    instances = Instances((64, 64), gt_classes=sample["instances"].gt_classes)
    instances.gt_masks = F.pad(sample["instances"].gt_masks, (0, 14, 0, 24))
    image = F.pad(sample["image"] - mean, (0, 14, 0, 24)) + mean
    expected = _losses(model, [{"image": image, "instances": instances}])
    for name, value in _losses(model, [sample]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_without_deep_supervision_earlier_layers_are_not_even_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("MODEL.MASK_FORMER.DEEP_SUPERVISION", False)
    expected = _losses(tiny_model(), [tiny_sample()])
    asked = []
    predict = model.sem_seg_head.predict
    monkeypatch.setattr(
        model.sem_seg_head,
        "predict",
        lambda *args, **kwargs: asked.append(kwargs["all_layers"]) or predict(*args, **kwargs),
    )
    losses = _losses(model, [tiny_sample()])
    assert asked == [False]
    assert list(losses) == ["loss_ce", "loss_mask", "loss_dice"]
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])


def test_bfloat16_autocast_stays_close_to_float32(model: MaskFormer) -> None:
    expected = _losses(model, [tiny_sample(3)])
    with torch.amp.autocast(device_type="cpu", dtype=torch.bfloat16):
        losses = _losses(model, [tiny_sample(3)])
        (result,) = _results(model, [tiny_sample()])
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert result["sem_seg"].dtype == torch.float32
    total, expected_total = sum(losses.values()), sum(expected.values())
    torch.testing.assert_close(total, expected_total, rtol=0.05, atol=0.0)


def test_a_picture_that_is_not_a_number_spoils_every_loss(model: MaskFormer) -> None:
    sample = tiny_sample()
    image = sample["image"].float()
    image[0, 0, 0] = float("nan")
    losses = _losses(model, [tiny_sample(2, 1), {**sample, "image": image}])
    assert all(value.isnan() for value in losses.values())


def _broken(field: str, value: Any) -> dict[str, Any]:
    sample = tiny_sample(2)
    fields = {**sample["instances"].get_fields(), field: value}
    instances = Instances((64, 64))
    for name, content in fields.items():
        instances._fields[name] = content
    return {**sample, "instances": instances}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image": torch.zeros(3, 64, 64), "file_name": "a.png"}, "a.png.*INPUT.DATASET_MAPPER_NAME"),
        (
            _broken("gt_classes", torch.tensor([1, 4])),
            r"sample_0.png: labels must be in 0..3 .*NUM_CLASSES=4\), got \[1, 4\]",
        ),
        (_broken("gt_classes", torch.tensor([-1, 2])), r"sample_0.png: labels .* got \[-1, 2\]"),
        (_broken("gt_masks", torch.zeros(2, 32, 64)), r"64x64 pixels need gt_masks of that shape, got \(2, 32, 64\)"),
        (_broken("gt_masks", BitMasks(torch.zeros(2, 64, 64))), "must be a tensor .* got BitMasks"),
    ],
    ids=["no instances", "label too large", "label negative", "mask of another size", "mask of another type"],
)
def test_bad_ground_truth_is_named(sample: dict[str, Any], message: str, model: MaskFormer) -> None:
    with pytest.raises(ValueError, match=message):
        _losses(model, [sample])


def test_missing_ground_truth_is_named_before_the_step(model: MaskFormer) -> None:
    with pytest.raises(ValueError, match="b.png.*INPUT.DATASET_MAPPER_NAME"):
        model.loss_normalizer([[tiny_sample()], [{"image": torch.zeros(3, 64, 64), "file_name": "b.png"}]])


def test_a_model_that_would_give_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="SEMANTIC_ON, INSTANCE_ON and PANOPTIC_ON are all False"):
        build_model(tiny_config(f"{TEST}.SEMANTIC_ON", False, *ONLY_SEMANTIC))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEMANTIC_OUTPUT", "label", "SEMANTIC_OUTPUT='label' is unknown; choose from scores, labels, probabilities"),
        ("INSTANCE_OUTPUT", "rle", "INSTANCE_OUTPUT='rle' is unknown; choose from masks, run_lengths"),
        ("MEMORY_BUDGET_MB", 0, "MEMORY_BUDGET_MB must be above 0, got 0"),
    ],
)
def test_settings_of_inference_that_mean_nothing_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(f"{TEST}.{key}", value)


@pytest.mark.parametrize("extra", [ONLY_SEMANTIC, ()])
def test_semantic_results_are_what_the_config_asks_for(extra: tuple[Any, ...]) -> None:
    sample = {**tiny_sample(size=(40, 50)), "height": 33, "width": 71}
    (scores,) = _results(_confident(tiny_model(*extra)), [sample])
    (labels,) = _results(_confident(tiny_model(*extra, f"{TEST}.SEMANTIC_OUTPUT", "labels")), [sample])
    (probabilities,) = _results(_confident(tiny_model(*extra, f"{TEST}.SEMANTIC_OUTPUT", "probabilities")), [sample])
    assert labels.keys() - scores.keys() == {"sem_seg_confidence"}
    assert probabilities.keys() - scores.keys() == {"sem_seg_entropy"}
    assert torch.equal(labels["sem_seg"].long(), scores["sem_seg"].argmax(dim=0))
    torch.testing.assert_close(probabilities["sem_seg"].amax(dim=0), labels["sem_seg_confidence"])


def test_a_model_without_a_training_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        build_model(tiny_config("DATASETS.TRAIN", ()))


def test_panoptic_results_need_to_know_the_things() -> None:
    model = tiny_model("DATASETS.TRAIN", ("tiny_model_without_things",))
    with pytest.raises(ValueError, match="'tiny_model_without_things'.*thing_dataset_id_to_contiguous_id"):
        _results(model, [tiny_sample()])


def test_normalization_constants_are_no_part_of_a_checkpoint(model: MaskFormer) -> None:
    state = model.state_dict()
    assert "criterion.empty_weight" in state
    assert not {"pixel_mean", "pixel_std"} & set(state)
    assert model.pixel_mean.shape == (3, 1, 1)
    assert model.device == torch.device("cpu")


def test_only_the_masks_that_are_read_are_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _confident(tiny_model(*WITHOUT_SEMANTIC, "TEST.DETECTIONS_PER_IMAGE", 2, f"{TEST}.PANOPTIC_ON", False))
    asked: list[Tensor] = []
    select = MaskLogits.select
    with torch.no_grad():
        predictions = model.sem_seg_head.predict(model.backbone(model._images([tiny_sample()])[0].tensor))
    best = predictions.class_logits[0, 0].softmax(-1)[:, :-1].flatten().topk(2).indices // NUM_CLASSES
    monkeypatch.setattr(MaskLogits, "select", lambda masks, clip, rows: asked.append(rows) or select(masks, clip, rows))
    (result,) = _results(model, [tiny_sample()])
    assert len(result["instances"]) == 2
    (queries,) = asked
    assert torch.equal(queries, best.unique())
    assert len(queries) < NUM_QUERIES
