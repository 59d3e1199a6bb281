"""The per-pixel baselines inside Detectron2's SemanticSegmentor: losses, results, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask2former.config import load_config
from mask2former.modeling.meta_arch.per_pixel_baseline import per_pixel_loss
from mask2former.registry import DATASET_MAPPER_REGISTRY
from tests.golden import CONFIGS
from tests.tiny_model import NUM_CLASSES, tiny_config

BASELINE = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
}
PLUS = {
    **BASELINE,
    "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselinePlusHead",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": NUM_CLASSES,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
}
IGNORE = 255


def _model(settings: dict[str, Any], **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return build_model(tiny_config(*[part for pair in {**settings, **changed}.items() for part in pair]))


def _sample(height: int = 64, width: int = 64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (height, width), generator=generator)
    labels[: height // 4] = IGNORE
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "sem_seg": labels}


def test_the_loss_is_the_mean_cross_entropy_of_labeled_pixels_after_upsampling() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 16, 20))
    labels[0, :7] = IGNORE
    upsampled = F.interpolate(logits, size=(16, 20), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, labels, ignore_index=IGNORE)
    torch.testing.assert_close(per_pixel_loss(logits, labels, IGNORE), expected)
    assert per_pixel_loss(logits.bfloat16(), labels, IGNORE).dtype == torch.float32


def test_sides_that_4_does_not_divide_lose_the_rest_of_the_last_cells() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 3, 4, 5), torch.randint(0, 3, (1, 16, 20))
    labels[:, 14:] = labels[:, :, 17:] = IGNORE
    torch.testing.assert_close(
        per_pixel_loss(logits, labels[:, :14, :17], IGNORE), per_pixel_loss(logits, labels, IGNORE)
    )


def test_a_picture_without_any_label_costs_nothing_and_moves_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = per_pixel_loss(logits, torch.full((1, 16, 16), IGNORE), IGNORE)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("settings", "changes", "names"),
    [
        (BASELINE, {}, ["loss_sem_seg"]),
        (PLUS, {}, ["loss_sem_seg", "loss_sem_seg_0", "loss_sem_seg_1"]),
        (PLUS, {"MODEL__MASK_FORMER__DEEP_SUPERVISION": False}, ["loss_sem_seg"]),
    ],
    ids=["baseline", "plus", "plus without deep supervision"],
)
def test_a_training_step_reaches_every_parameter(settings: dict[str, Any], changes: Any, names: list[str]) -> None:
    model = _model(settings, **changes).train()
    losses = model([_sample(), _sample(48, 60, seed=1)])
    assert sorted(losses) == names
    sum(losses.values()).backward()
    # Every Swin stage has an output norm; all four maps are read.
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("settings", [BASELINE, PLUS], ids=["baseline", "plus"])
def test_the_loss_weight_scales_all_losses(settings: dict[str, Any]) -> None:
    plain = _model(settings)([_sample()])
    scaled = _model(settings, MODEL__SEM_SEG_HEAD__LOSS_WEIGHT=3.0)([_sample()])
    for name, loss in plain.items():
        torch.testing.assert_close(scaled[name], 3 * loss)


@pytest.mark.parametrize("settings", [BASELINE, PLUS], ids=["baseline", "plus"])
def test_inference_gives_logits_of_the_wanted_size(settings: dict[str, Any]) -> None:
    model = _model(settings).eval()
    with torch.no_grad():
        (result,) = model([{"image": _sample(50, 70)["image"], "height": 25, "width": 35}])
        logits, losses = model.sem_seg_head(model.backbone(torch.zeros(1, 3, 64, 96)))
    assert result["sem_seg"].shape == (NUM_CLASSES, 25, 35)
    assert logits.shape == (1, NUM_CLASSES, 64, 96) and losses == {}


def test_a_resnet_takes_pictures_of_any_size() -> None:
    # It asks for no padding, so that maps at stride 4 need not fit the picture.
    resnet = {
        **BASELINE,
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }
    model, sample = _model(resnet), {**_sample(45, 57), "height": 45, "width": 57}
    assert model.train()([sample])["loss_sem_seg"].isfinite()
    assert model.eval()([sample])[0]["sem_seg"].shape == (NUM_CLASSES, 45, 57)


@pytest.mark.parametrize("settings", [BASELINE, PLUS], ids=["baseline", "plus"])
def test_samples_of_the_semantic_mapper_can_be_trained_on(settings: dict[str, Any], digits_root: Path) -> None:
    overrides = ["INPUT.CROP.SIZE", "[64, 64]", "INPUT.SIZE_DIVISIBILITY", "64"]
    mapper = DATASET_MAPPER_REGISTRY.get("mask_former_semantic")(
        load_config(CONFIGS / "digits/semantic.yaml", overrides), True
    )
    samples = [mapper(record) for record in DatasetCatalog.get("digits_semantic_train")[:2]]
    changes = {"MODEL__SEM_SEG_HEAD__NUM_CLASSES": 13, "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 13}
    losses = _model(settings, **changes)(samples)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


def test_the_published_files_of_the_plus_head_need_not_name_its_decoder() -> None:
    assert "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME" not in PLUS
    assert type(_model(PLUS).sem_seg_head.predictor).__name__ == "StandardTransformerDecoder"


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (PLUS, {"MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 100}, "NUM_OBJECT_QUERIES=100 must equal .*NUM_CLASSES=4"),
        (
            PLUS,
            {"MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder"},
            "'multi_scale_pixel_decoder' means three maps",
        ),
        (BASELINE, {"MODEL__SEM_SEG_HEAD__IN_FEATURES": ["p3"]}, r"IN_FEATURES=\['p3'\] must name some"),
    ],
)
def test_settings_that_cannot_be_built_are_named(settings: dict[str, Any], changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _model(settings, **changes)


def test_an_encoder_map_that_the_pixel_decoder_does_not_make_is_refused() -> None:
    model = _model(PLUS, MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE="transformer_encoder")
    with pytest.raises(ValueError, match="TRANSFORMER_IN_FEATURE='transformer_encoder' is not produced"):
        model([_sample()])


def test_training_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no 'sem_seg' to train PerPixelBaselineHead on; INPUT\.DATASET_MAPPER_NAME"):
        _model(BASELINE)([{"image": _sample()["image"]}])


def test_labels_beyond_the_classes_are_named() -> None:
    sample = _sample()
    sample["sem_seg"][40, 40:42] = torch.tensor([9, NUM_CLASSES])
    with pytest.raises(
        ValueError, match=r"labels \[4, 9\]; allowed are 0\.\.3 .*NUM_CLASSES=4\) and .*IGNORE_VALUE=255"
    ):
        _model(BASELINE)([sample])
