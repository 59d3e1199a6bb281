"""Averaging over sizes and mirror images."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import Backbone, SemanticSegmentor
from torch import Tensor, nn

from mask2former.test_time_augmentation import SemanticSegmentorWithTTA


class _Brightness(nn.Module):
    """Its score is the picture itself, resized to the wanted output: equivariant to scaling and mirroring."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        (single,) = batched_inputs
        self.seen.append(tuple(single["image"].shape[-2:]))
        size = (single["height"], single["width"])
        resized = nn.functional.interpolate(single["image"][None].float(), size=size, mode="bilinear")[0]
        return [{"sem_seg": resized}]


def _tta(model: nn.Module, sizes: list[int], flip: bool) -> SemanticSegmentorWithTTA:
    cfg = get_cfg()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = sizes, 1000, flip
    return SemanticSegmentorWithTTA(cfg, model)


@pytest.fixture
def gradient() -> Tensor:
    ramp = torch.linspace(0, 255, 48).round().to(torch.uint8)
    return ramp.expand(3, 32, 48).contiguous()  # brighter to the right: a mirror image is not the same


def test_every_size_is_shown_plain_and_mirrored(gradient: Tensor) -> None:
    model = _Brightness()
    _tta(model, [16, 32], flip=True)([{"image": gradient, "height": 32, "width": 48}])
    assert model.seen == [(16, 24), (16, 24), (32, 48), (32, 48)]


def test_mirrored_scores_are_mirrored_back(gradient: Tensor) -> None:
    single = {"image": gradient, "height": 32, "width": 48}
    plain = _tta(_Brightness(), [32], flip=False)([single])[0]["sem_seg"]
    both = _tta(_Brightness(), [32], flip=True)([single])[0]["sem_seg"]
    torch.testing.assert_close(both, plain)


def test_without_an_output_size_the_pictures_own_is_meant(gradient: Tensor) -> None:
    assert _tta(_Brightness(), [16], flip=False)([{"image": gradient}])[0]["sem_seg"].shape == (3, 32, 48)


def test_no_sizes_is_an_error(gradient: Tensor) -> None:
    with pytest.raises(ValueError, match=r"TEST\.AUG\.MIN_SIZES"):
        _tta(_Brightness(), [], flip=True)([{"image": gradient}])


class _SlopeHead(nn.Module):
    """Two classes: dark and bright."""

    def forward(self, features: dict[str, Tensor], targets: None = None) -> tuple[Tensor, dict[str, Tensor]]:
        brightness_N1HW = features["res1"].mean(dim=1, keepdim=True)
        return torch.cat([-brightness_N1HW, brightness_N1HW], dim=1), {}


class _Pixels(Backbone):
    """The picture itself as the only map."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"res1": images}


def test_detectron2s_own_semantic_segmentor_is_augmented_too(gradient: Tensor) -> None:
    """The meta-architecture of both per-pixel baselines."""
    segmentor = SemanticSegmentor(
        backbone=_Pixels(), sem_seg_head=_SlopeHead(), pixel_mean=[128.0] * 3, pixel_std=[1.0] * 3
    ).eval()
    (result,) = _tta(segmentor, [32, 64], flip=True)([{"image": gradient}])
    assert result["sem_seg"].shape == (2, 32, 48)
    assert torch.equal(result["sem_seg"].argmax(0), (gradient[0] >= 128).long())


def test_models_without_semantic_results_are_refused(gradient: Tensor) -> None:
    class Boxes(nn.Module):
        def forward(self, batched_inputs: list[dict]) -> list[dict[str, str]]:
            return [{"instances": "boxes"}]

    with pytest.raises(ValueError, match=r"Boxes gives no sem_seg but \['instances'\]"):
        _tta(Boxes(), [32], flip=False)([{"image": gradient}])
