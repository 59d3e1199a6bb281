"""What outside code reads from the model: names, types and shapes of losses and results."""

from __future__ import annotations

import inspect

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances

from mask2former import MaskFormer
from mask2former.modeling import postprocessing
from tests.tiny_model import NUM_CLASSES, NUM_PREDICTIONS, tiny_model, tiny_sample


@pytest.fixture(scope="module")
def model() -> MaskFormer:
    return tiny_model()


def test_the_meta_architecture_is_registered_under_its_published_name() -> None:
    assert META_ARCH_REGISTRY.get("MaskFormer") is MaskFormer


def test_losses_have_their_published_names(model: MaskFormer) -> None:
    losses = model.train()([tiny_sample()])
    suffixes = ["", *(f"_{layer}" for layer in range(NUM_PREDICTIONS - 1))]
    assert set(losses) == {f"loss_{name}{suffix}" for name in ("ce", "mask", "dice") for suffix in suffixes}
    assert all(value.dim() == 0 and value.requires_grad for value in losses.values())


def test_the_head_gives_published_predictions_for_the_maps_of_the_backbone(model: MaskFormer) -> None:
    features = model.eval().backbone(torch.zeros(2, 3, 64, 96))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    outputs = model.sem_seg_head(features)
    assert outputs["pred_logits"].shape == (2, 6, NUM_CLASSES + 1)
    assert outputs["pred_masks"].shape == (2, 6, 16, 24)


def test_results_have_their_published_names_types_and_shapes(model: MaskFormer) -> None:
    sample = {**tiny_sample(size=(50, 60)), "height": 25, "width": 30}
    with torch.no_grad():
        (result,) = model.eval()([sample])
    assert set(result) == {"sem_seg", "panoptic_seg", "instances"}

    assert result["sem_seg"].shape == (NUM_CLASSES, 25, 30)
    assert result["sem_seg"].dtype == torch.float32

    segment_ids, segments_info = result["panoptic_seg"]
    assert segment_ids.shape == (25, 30)
    assert segment_ids.dtype == torch.int32
    for info in segments_info:
        assert {name: type(value) for name, value in info.items()} == {
            "id": int,
            "isthing": bool,
            "category_id": int,
            "score": float,
        }

    instances = result["instances"]
    assert isinstance(instances, Instances)
    assert instances.image_size == (25, 30)
    assert set(instances.get_fields()) == {"pred_masks", "pred_boxes", "scores", "pred_classes"}
    assert instances.pred_masks.shape == (len(instances), 25, 30)
    assert isinstance(instances.pred_boxes, Boxes)
    assert instances.pred_boxes.tensor.shape == (len(instances), 4)
    assert instances.pred_classes.dtype == torch.int64


def test_results_default_to_the_size_of_the_image(model: MaskFormer) -> None:
    with torch.no_grad():
        (result,) = model.eval()([{"image": torch.zeros(3, 50, 60)}])
    assert result["sem_seg"].shape[1:] == (50, 60)


@pytest.mark.parametrize(
    ("name", "positional", "by_name"),
    [
        ("semantic_inference", [], []),
        ("panoptic_inference", [], ["thing_ids", "object_mask_threshold", "overlap_threshold"]),
        ("instance_inference", [], ["topk", "thing_ids"]),
    ],
)
def test_post_processing_keeps_its_signatures(name: str, positional: list[str], by_name: list[str]) -> None:
    parameters = inspect.signature(getattr(postprocessing, name)).parameters
    kinds = {key: parameter.kind for key, parameter in parameters.items()}
    assert [key for key, kind in kinds.items() if kind == inspect.Parameter.POSITIONAL_OR_KEYWORD] == [
        "class_logits",
        "mask_logits",
        *positional,
    ]
    keywords = [key for key, kind in kinds.items() if kind == inspect.Parameter.KEYWORD_ONLY]
    assert keywords[: len(by_name)] == by_name
    assert all(parameters[key].default is not inspect.Parameter.empty for key in keywords[len(by_name) :])


def test_a_segment_has_its_published_fields() -> None:
    _, (info,) = postprocessing.panoptic_inference(
        torch.tensor([[5.0, 0]]), torch.ones(1, 2, 2), thing_ids=[0], object_mask_threshold=0.0, overlap_threshold=0.0
    )
    assert info == {"id": 1, "isthing": True, "category_id": 0}
