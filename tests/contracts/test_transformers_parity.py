"""transformers' independent Mask2Former computes the same from the same weights: predictions, losses, gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor

from mask2former import MaskFormer
from mask2former.config import load_config
from mask2former.modeling.transformers_weights import from_transformers
from tests.golden import CONFIGS, picture
from tests.modeling.fixed_points import fixed_points
from tests.modeling.transformers_cases import randomize

transformers = pytest.importorskip("transformers", reason="extra 'hf' is not installed")
modeling_mask2former = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")

NUM_CLASSES = 11
NUM_QUERIES = 20
NUM_POINTS = 64
SIZE = (96, 160)
TOLERANCE = 1e-4

R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
SWIN_TINY = "ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml"
STAGES = ["stage1", "stage2", "stage3", "stage4"]


class Pair(NamedTuple):
    """The same weights twice."""

    ours: MaskFormer
    theirs: Any


def make_backbone_config(name: str) -> Any:
    if name == "R50":
        return transformers.ResNetConfig(depths=[3, 4, 6, 3], layer_type="bottleneck", out_features=STAGES)
    return transformers.SwinConfig(
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.0,
        out_features=STAGES,
    )


@pytest.fixture(scope="module", params=["R50", "Swin-T"])
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(
        backbone_config=make_backbone_config(request.param),
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        train_num_points=NUM_POINTS,
    )
    theirs = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    randomize(theirs)
    overrides = {
        "MODEL.DEVICE": "cpu",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": NUM_QUERIES,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": NUM_POINTS,
        "MODEL.SWIN.DROP_PATH_RATE": 0.0,
    }
    file = R50 if request.param == "R50" else SWIN_TINY
    ours = build_model(load_config(CONFIGS / file, [item for entry in overrides.items() for item in entry]))
    missing, unexpected = ours.load_state_dict(from_transformers(theirs.state_dict()), strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    return Pair(ours, theirs)


def relative_deviation(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def make_samples() -> list[dict[str, Any]]:
    """Two pictures with 3 and 1 targets: overlapping rectangles of several classes."""
    samples = []
    for seed, labels in ((1, [0, 3, 3]), (2, [10])):
        instances = Instances(SIZE)
        instances.gt_classes = torch.tensor(labels)
        instances.gt_masks = torch.zeros(len(labels), *SIZE, dtype=torch.bool)
        for index, mask in enumerate(instances.gt_masks):
            mask[10 * index : 50 + 10 * index, 20 * seed : 90 + 15 * index] = True
        samples.append({"image": picture(seed, SIZE), "instances": instances})
    return samples


def normalized(model: MaskFormer, samples: list[dict[str, Any]]) -> Tensor:
    return torch.stack([(sample["image"] - model.pixel_mean) / model.pixel_std for sample in samples])


def test_class_and_mask_logits_agree(pair: Pair) -> None:
    images = normalized(pair.ours, make_samples())
    with torch.no_grad():
        ours = pair.ours.eval().sem_seg_head(pair.ours.backbone(images))
        theirs = pair.theirs(pixel_values=images)
    assert relative_deviation(ours["pred_logits"], theirs.class_queries_logits) < TOLERANCE
    assert relative_deviation(ours["pred_masks"], theirs.masks_queries_logits) < TOLERANCE


def draw_fixed_points(num_maps: int, num_points: int, two: int, *, device: torch.device) -> Tensor:
    """`torch.rand` as transformers calls it to draw points."""
    assert two == 2
    return fixed_points(num_maps, num_points, device).contiguous()


def test_losses_of_all_layers_and_their_gradients_agree(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples()
    # Both sides draw the same points, so that both matchers see the same costs.
    monkeypatch.setattr(pair.ours.criterion, "draw_points", fixed_points)
    monkeypatch.setattr(pair.ours.criterion.matcher, "draw_points", fixed_points)
    fixed_torch = SimpleNamespace(**{**vars(torch), "rand": draw_fixed_points})
    monkeypatch.setattr(modeling_mask2former, "torch", fixed_torch)
    their_losses: dict[str, Tensor] = {}
    monkeypatch.setattr(pair.theirs, "get_loss", lambda losses: their_losses.update(losses) or sum(losses.values()))

    for model in pair:
        model.zero_grad()
    our_losses = pair.ours.train()(samples)
    their_total = pair.theirs(
        pixel_values=normalized(pair.ours, samples),
        mask_labels=[sample["instances"].gt_masks.float() for sample in samples],
        class_labels=[sample["instances"].gt_classes for sample in samples],
    ).loss

    renamed = {name.replace("cross_entropy", "ce"): value for name, value in their_losses.items()}
    assert set(our_losses) == set(renamed)
    assert len(our_losses) == 30
    for name, value in our_losses.items():
        assert value.item() == pytest.approx(renamed[name].item(), rel=TOLERANCE), name

    sum(our_losses.values()).backward()
    their_total.backward()
    gradients = {name: p.grad for name, p in pair.theirs.named_parameters() if p.grad is not None}
    expected = from_transformers(gradients)
    for name, parameter in pair.ours.named_parameters():
        # By norm, because gradients jump where a location crosses the center of a cell or a unit its zero: rounding
        # that moves one unit across moves the gradient of its layer by 1e-3, as the C++ operator's does here.
        deviation = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert deviation < 30 * TOLERANCE, name
