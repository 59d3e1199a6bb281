"""All three tasks from augmented copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.evaluation import inference_context
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former import MaskFormer
from mask2former.maskformer_model import ImagePrediction, MaskSizes
from mask2former.modeling.masks import MaskLogits
from mask2former.test_time_augmentation import (
    MaskFormerWithTTA,
    SemanticSegmentorWithTTA,
    with_test_time_augmentation,
)
from tests.golden import random_normal
from tests.tiny_model import NUM_CLASSES, NUM_QUERIES, tiny_config, tiny_model, tiny_sample

TEST = "MODEL.MASK_FORMER.TEST"
ONLY_SEMANTIC = (f"{TEST}.INSTANCE_ON", False, f"{TEST}.PANOPTIC_ON", False)
LOW_THRESHOLD = (f"{TEST}.OBJECT_MASK_THRESHOLD", 0.3)


def _confident_model(*overrides: Any) -> MaskFormer:
    """Queries that are objects of several classes with masks of several sizes; those of fresh weights hardly differ."""
    model = tiny_model(*LOW_THRESHOLD, *overrides)
    decoder = model.sem_seg_head.predictor
    last = decoder.mask_embed.layers[-1]
    with torch.no_grad():
        decoder.class_embed.weight.copy_(random_normal(2, *decoder.class_embed.weight.shape))
        last.weight.copy_(random_normal(11, *last.weight.shape))
        last.bias.zero_()
    return model.eval()


def _augmentation(sizes: list[int], flip: bool) -> Any:
    return tiny_config("TEST.AUG.MIN_SIZES", sizes, "TEST.AUG.FLIP", flip)


def _assert_equal_results(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    if "sem_seg" in expected:
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"])
    if "panoptic_seg" in expected:
        assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    if "instances" in expected:
        for field in ("pred_masks", "pred_classes", "scores"):
            assert torch.equal(found["instances"].get(field), expected["instances"].get(field))


@pytest.mark.parametrize("switched_off", [(), (f"{TEST}.SEMANTIC_ON", False), (f"{TEST}.PANOPTIC_ON", False)])
def test_one_copy_at_the_inputs_size_gives_what_the_model_gives(switched_off: tuple[Any, ...]) -> None:
    model = _confident_model(*switched_off)
    sample = {"image": tiny_sample(size=(40, 50))["image"], "height": 33, "width": 71}
    with torch.no_grad():
        (expected,) = model([sample])
    (found,) = MaskFormerWithTTA(_augmentation([40], flip=False), model)([sample])
    _assert_equal_results(found, expected)
    assert len(expected["instances"]) > 0


def test_without_an_output_size_the_pictures_own_is_meant() -> None:
    (result,) = MaskFormerWithTTA(_augmentation([32], flip=False), _confident_model())([tiny_sample(size=(40, 50))])
    assert result["sem_seg"].shape == (NUM_CLASSES, 40, 50)
    assert result["panoptic_seg"][0].shape == result["instances"].image_size == (40, 50)


def test_semantic_scores_are_the_published_mean() -> None:
    model, cfg = _confident_model(), _augmentation([32, 40, 64], flip=True)
    sample = {"image": tiny_sample(size=(40, 50))["image"], "height": 33, "width": 71}
    (found,) = MaskFormerWithTTA(cfg, model)([sample])
    (expected,) = SemanticSegmentorWithTTA(cfg, model)([sample])
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"])


def test_the_reference_is_the_plain_copy_nearest_to_the_input() -> None:
    model, seen = _confident_model(), []
    model.register_forward_pre_hook(lambda *_: pytest.fail("predictions are asked for, not results"))
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    MaskFormerWithTTA(_augmentation([128, 96, 64], flip=True), model)([tiny_sample(size=(70, 70))])
    assert seen == [64, 128, 128, 96, 96, 64]


class _SeesColors(MaskFormer):
    """A network that finds what there is to find at any size: query 0 what is red, 1 what is green, 2 what is blue.

    Larger copies, and mirrored ones, order their queries differently.
    """

    def predict(self, batched_inputs: Any) -> list[ImagePrediction]:
        (sample,) = batched_inputs
        image_3hw = sample["image"].float()
        size = (image_3hw.shape[-2], image_3hw.shape[-1])
        features_3hw = F.avg_pool2d(image_3hw[None], 4)[0] / 128 - 1
        turn = size[0] // 32 + int(image_3hw[:, 0, 0].argmax())
        embeddings_QC = 6 * torch.eye(3).roll(turn, dims=0)
        class_logits_QK = 8 * torch.eye(3, NUM_CLASSES + 1).roll(turn, dims=0)
        masks = MaskLogits(embeddings_QC[None], features_3hw[None, None])
        sizes = MaskSizes(size, size, (int(sample["height"]), int(sample["width"])))
        return [ImagePrediction(class_logits_QK, masks, sizes)]


@pytest.fixture
def sees_colors() -> MaskFormer:
    model = tiny_model(*LOW_THRESHOLD)
    model.__class__ = _SeesColors
    return model.eval()


@pytest.fixture
def colors() -> Tensor:
    """Left third red, right third blue, between them green, and all of the lowest rows blue."""
    image_3HW = torch.zeros(3, 64, 96, dtype=torch.uint8)
    for channel, (left, right) in enumerate([(0, 32), (32, 64), (64, 96)]):
        image_3HW[channel, :48, left:right] = 255
    image_3HW[2, 48:] = 255
    return image_3HW


def test_a_mirrored_picture_gives_mirrored_results(sees_colors: MaskFormer, colors: Tensor) -> None:
    model = MaskFormerWithTTA(_augmentation([32, 64, 128], flip=True), sees_colors)
    plain, mirrored = model([{"image": colors}, {"image": colors.flip(-1)}])
    torch.testing.assert_close(mirrored["sem_seg"].flip(-1), plain["sem_seg"])

    classes = []
    for segment_ids, segments_info in (plain["panoptic_seg"], mirrored["panoptic_seg"]):
        class_of = torch.tensor([-1, *(info["category_id"] for info in segments_info)])
        classes.append(class_of[segment_ids])
    assert torch.equal(classes[1].flip(-1), classes[0])
    assert set(classes[0].unique().tolist()) >= {0, 1, 2}

    order = [result["instances"].pred_classes.argsort() for result in (plain, mirrored)]
    masks = [result["instances"].pred_masks[index] for result, index in zip((plain, mirrored), order, strict=True)]
    assert torch.equal(masks[1].flip(-1), masks[0])


def test_queries_in_another_order_at_every_size_still_find_the_same(sees_colors: MaskFormer, colors: Tensor) -> None:
    plain = sees_colors([{"image": colors, "height": 64, "width": 96}])[0]["panoptic_seg"]
    model = MaskFormerWithTTA(_augmentation([32, 64, 128], flip=True), sees_colors)
    (augmented,) = (result["panoptic_seg"] for result in model([{"image": colors}]))
    found, expected = ({info["category_id"] for info in segments} for _, segments in (augmented, plain))
    assert found == expected == {0, 1, 2}
    differing = (augmented[0] != plain[0]).float().mean()
    assert differing < 0.1  # along the edges


def test_nothing_found_is_nothing_given() -> None:
    model = _confident_model()
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.weight.zero_()
        model.sem_seg_head.predictor.class_embed.bias.copy_(torch.tensor([0.0] * NUM_CLASSES + [50.0]))
    (result,) = MaskFormerWithTTA(_augmentation([64, 96], flip=True), model)([tiny_sample()])
    assert result["panoptic_seg"][1] == [] and not result["panoptic_seg"][0].any()
    assert result["instances"].scores.max() < 1e-6
    assert len(result["instances"]) <= NUM_QUERIES * NUM_CLASSES


def test_autocast_around_it_leaves_the_merging_in_full_precision() -> None:
    model = MaskFormerWithTTA(_augmentation([64, 96], flip=True), _confident_model())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (result,) = model([tiny_sample()])
    assert result["sem_seg"].dtype == result["instances"].scores.dtype == torch.float32


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("kind", [MaskFormerWithTTA, SemanticSegmentorWithTTA])
def test_an_evaluation_leaves_the_model_in_its_mode(kind: type[nn.Module], is_training: bool) -> None:
    model = tiny_model().train(is_training)
    with inference_context(kind(tiny_config(), model)):
        assert not model.training
    assert model.training == model.backbone.training == is_training


@pytest.mark.parametrize("kind", [MaskFormerWithTTA, SemanticSegmentorWithTTA])
def test_labels_have_no_mean(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED .*SEMANTIC_OUTPUT scores, not labels"):
        kind(tiny_config(), tiny_model(f"{TEST}.SEMANTIC_OUTPUT", "labels"))
    without = tiny_model(f"{TEST}.SEMANTIC_OUTPUT", "labels", f"{TEST}.SEMANTIC_ON", False)
    assert MaskFormerWithTTA(tiny_config(), without)([tiny_sample()])[0].keys() == {"panoptic_seg", "instances"}


def test_clips_are_refused() -> None:
    model = MaskFormerWithTTA(_augmentation([32], flip=False), _confident_model())
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED"):
        model([{"image": [tiny_sample()["image"]] * 2}])


def test_a_semantic_model_is_augmented_as_published(tmp_path: Path) -> None:
    cfg = tiny_config()
    semantic, panoptic = tiny_model(*ONLY_SEMANTIC), tiny_model()
    assert isinstance(with_test_time_augmentation(cfg, semantic), SemanticSegmentorWithTTA)
    assert isinstance(with_test_time_augmentation(cfg, nn.Identity()), SemanticSegmentorWithTTA)
    assert isinstance(with_test_time_augmentation(cfg, panoptic), MaskFormerWithTTA)
    with pytest.raises(ValueError, match="SemanticSegmentorWithTTA"):
        MaskFormerWithTTA(cfg, semantic)

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        distributed = with_test_time_augmentation(cfg, DistributedDataParallel(panoptic))
    finally:
        dist.destroy_process_group()
    assert isinstance(distributed, MaskFormerWithTTA) and distributed.model is panoptic
