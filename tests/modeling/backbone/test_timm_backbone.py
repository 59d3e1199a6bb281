"""Models of timm as backbones. timm's `test_*` models are small ones of the same classes."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from timm.layers import BatchNormAct2d
from torch import nn

from mask2former.config import load_config
from mask2former.engine.optimizer import build_optimizer
from mask2former.modeling.backbone import timm_models
from mask2former.modeling.backbone.timm_backbone import TimmBackbone
from mask2former.modeling.checkpoint import MaskFormerCheckpointer
from tests.golden import CONFIGS
from tests.tiny_model import tiny_config, tiny_model, tiny_sample

SMALL = ["test_efficientnet", "test_convnext", "test_resnet", "test_vit"]
EXAMPLES = sorted((CONFIGS / "coco/panoptic-segmentation/timm").glob("*.yaml"))
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def make_backbone(name: str = "test_efficientnet", **options) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(name=name, **options)


def timm_config(*overrides, name: str = "test_efficientnet"):
    return tiny_config("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.TIMM.NAME", name, *overrides)


def timm_model(name: str):
    return tiny_model("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.TIMM.NAME", name)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("efficientnet_b0", [24, 40, 112, 320]),
        ("convnext_tiny", [96, 192, 384, 768]),
        ("resnet50", [256, 512, 1024, 2048]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768]),  # channels last and of one size, unless told otherwise
        ("vit_small_patch16_224", [96, 192, 384, 384]),
    ],
)
@torch.no_grad()
def test_maps_have_the_announced_strides_and_channels(name: str, channels: list[int]) -> None:
    backbone = make_backbone(name).eval()
    shapes = backbone.output_shape()
    assert shapes == {
        feature: ShapeSpec(channels=count, stride=stride)
        for (feature, stride), count in zip(STRIDES.items(), channels, strict=True)
    }
    for height, width in ((64, 96), (70, 33)):
        maps = backbone(torch.randn(1, 3, height, width))
        assert {feature: tuple(x.shape) for feature, x in maps.items()} == {
            feature: (1, shape.channels, -(-height // shape.stride), -(-width // shape.stride))
            for feature, shape in shapes.items()
        }


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_maps_are_those_of_the_classifier(name: str) -> None:
    backbone, classifier = make_backbone(name).eval(), timm.create_model(name).eval()
    classifier.load_state_dict(backbone.model.state_dict(), strict=False)
    last = "res4" if "vit" in name else "res5"
    side = 160 if "vit" in name else 64
    image = torch.randn(1, 3, side, side)
    expected = classifier.forward_intermediates(image, indices=1, intermediates_only=True)[0]
    torch.testing.assert_close(backbone(image)[last], expected)


@torch.no_grad()
def test_padding_is_at_the_right_and_the_bottom() -> None:
    backbone = make_backbone("test_convnext").eval()
    image = torch.randn(1, 3, 40, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :40, :50] = image
    assert torch.equal(backbone(image)["res3"], backbone(padded)["res3"][..., :5, :7])


@torch.no_grad()
def test_position_embeddings_are_resized_to_the_picture() -> None:
    backbone = make_backbone("test_vit").eval()
    assert backbone.model.pos_embed.shape[1] == 1 + 10 * 10, "trained on 160 pixels"
    image = torch.randn(1, 3, 64, 96)
    before = backbone(image)["res4"]
    backbone.model.pos_embed.add_(torch.randn_like(backbone.model.pos_embed))
    assert (backbone(image)["res4"] - before).abs().max() > 0.1


def test_only_requested_maps_are_computed() -> None:
    backbone = make_backbone(out_features=("res4", "res3"))
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["res3", "res4"] == list(backbone.output_shape())
    assert len(list(backbone.parameters())) < len(list(make_backbone().parameters()))
    assert list(make_backbone("test_vit", out_features=("res4",))(torch.randn(1, 3, 32, 32))) == ["res4"]


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name: str) -> None:
    backbone = make_backbone(name)
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("name", "num_tensors"),
    [("efficientnet_b0", 352), ("convnext_tiny", 178), ("resnet50", 318), ("vit_small_patch16_224", 148)],
)
def test_tensors_are_called_as_in_the_classifier(name: str, num_tensors: int) -> None:
    with torch.device("meta"):
        classifier, backbone = timm.create_model(name).state_dict(), TimmBackbone(name=name).state_dict()
    shapes = {key: tensor.shape for key, tensor in backbone.items() if not key.startswith("pyramid.")}
    assert len(shapes) == num_tensors
    assert shapes == {f"model.{key}": tensor.shape for key, tensor in classifier.items() if f"model.{key}" in shapes}


@pytest.mark.parametrize("name", SMALL)
def test_a_classifiers_file_fills_the_backbone_and_nothing_else(name: str, tmp_path: Path) -> None:
    model, file = timm_model(name), timm.create_model(name).state_dict()
    initial = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.save({"model": file, "matching_heuristics": True}, tmp_path / "classifier.pth")
    MaskFormerCheckpointer(model).load(str(tmp_path / "classifier.pth"))
    for key, tensor in model.state_dict().items():
        is_loaded = key.startswith("backbone.model.")
        assert torch.equal(tensor, file[key.removeprefix("backbone.model.")] if is_loaded else initial[key]), key


@pytest.mark.parametrize("name", ["efficientnet_b0", "test_vit"])
def test_a_whole_model_learns_and_infers(name: str) -> None:
    model = timm_model(name)
    optimizer = build_optimizer(timm_config(name=name), model)
    before = {key: parameter.detach().clone() for key, parameter in model.backbone.named_parameters()}
    sum(model([tiny_sample(), tiny_sample(seed=1)]).values()).backward()
    optimizer.step()
    changed = {key for key, parameter in model.backbone.named_parameters() if not torch.equal(parameter, before[key])}
    assert changed == set(before)
    with torch.no_grad():
        (result,) = model.eval()([tiny_sample(size=(50, 70))])
    assert result["sem_seg"].shape[1:] == (50, 70) and result["sem_seg"].isfinite().all()


def test_frozen_norms_keep_statistics_and_scales_and_everything_else_learns() -> None:
    backbone = make_backbone(norm="FrozenBN").train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    backbone(1 + torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(norm.weight.grad is None and norm.bias.grad is None for norm in norms)
    assert backbone.model.conv_stem.weight.grad is not None
    assert make_backbone().state_dict().keys() == backbone.state_dict().keys()


def test_synchronized_norms_keep_names_values_and_activations() -> None:
    plain, synchronized = make_backbone().eval(), make_backbone(norm="SyncBN").eval()
    assert sum(isinstance(module, BatchNormAct2d) for module in plain.modules()) == sum(
        isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules()
    )
    assert plain.state_dict().keys() == synchronized.state_dict().keys()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(plain(image), synchronized(image))


def test_norm_options_without_batch_norm_are_said_to_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_backbone("test_convnext", norm="FrozenBN")
    assert "MODEL.TIMM.NORM='FrozenBN' changes nothing: test_convnext has no batch norm" in caplog.text


def test_a_frozen_model_stays_as_it_is_and_its_pyramid_learns() -> None:
    backbone = make_backbone("test_vit", freeze=True, drop_path_rate=0.5).train()
    trainable = [key for key, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert trainable and all(key.startswith("pyramid.") for key in trainable)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(backbone(image)["res5"], backbone.eval()(image)["res5"])


@pytest.mark.parametrize("name", SMALL)
def test_recomputation_changes_no_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recompute, num_calls = torch.utils.checkpoint.checkpoint, []
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: num_calls.append(1) or recompute(*a, **k))
    image, gradients = torch.randn(2, 3, 64, 64), []
    for checkpoint_blocks in (False, True):
        assert not num_calls, "asked for"
        backbone = make_backbone(name, checkpoint_blocks=checkpoint_blocks)
        sum(x.square().mean() for x in backbone(image).values()).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    assert num_calls
    torch.testing.assert_close(*gradients)


def test_stochastic_depth_is_passed_on() -> None:
    drop_paths = [
        m.drop_prob for m in make_backbone("test_vit", drop_path_rate=0.4).modules() if hasattr(m, "drop_prob")
    ]
    assert max(drop_paths) == pytest.approx(0.4)


def test_pictures_may_have_other_channels() -> None:
    assert make_backbone(in_channels=4).eval()(torch.randn(1, 4, 32, 32))["res2"].shape[-1] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "efficientnet-b0"}, "'efficientnet-b0' is no model of timm .*did you mean efficientnet_b0"),
        ({"name": ""}, "is no model of timm .*list_models"),
        ({"name": "efficientnet_b0.in5k"}, "no such weights of efficientnet_b0; it has: .*efficientnet_b0.ra_in1k"),
        ({"name": "levit_128"}, r"maps of the strides \[16, 32, 64\] in pixels, but the model needs \[4, 8, 16, 32\]"),
        ({"name": "vit_small_patch14_dinov2"}, r"strides \[14\].* patches of \[4, 8, 16, 32\] pixels"),
        ({"name": "test_vit_relpos"}, r"does not read pictures of all sizes .*\(Input height \(64\) doesn't match"),
        ({"name": "legacy_xception"}, r"makes maps .*\(128, 15, 23\).* instead of .*\(128, 16, 24\)"),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "DROP_PATH_RATE=0.1, but vgg11 has no stochastic depth"),
        ({"name": "vgg11", "checkpoint_blocks": True}, "USE_CHECKPOINT is True, but vgg11 cannot recompute"),
        ({"name": "test_vit_relpos", "norm": "BN"}, "NORM='BN' is unknown; choose from: '', 'FrozenBN', 'SyncBN'"),
        ({"name": "test_vit", "out_features": ("res6",)}, "OUT_FEATURES=.*res6.* must name some of res2, res3"),
        ({"name": "test_vit", "out_features": ()}, "OUT_FEATURES=.* must name some of res2, res3"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmBackbone(**options)


def test_images_without_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        make_backbone()(torch.randn(3, 32, 32))


def test_a_missing_timm_is_named_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'mask2former\[timm\]'"):
        build_backbone(timm_config())


def test_the_package_is_imported_without_timm() -> None:
    program = "import sys; sys.modules['timm'] = None; import mask2former"
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr


def test_an_old_timm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "__version__", "1.0.9")
    with pytest.raises(ImportError, match=r"needs timm 1\.0\.31 or later, this is 1\.0\.9"):
        build_backbone(timm_config())


def test_a_failed_download_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def without_network(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    cfg = timm_config("MODEL.TIMM.PRETRAINED", True)
    with pytest.raises(FileNotFoundError, match=r"weights of test_efficientnet .*no route to host.*MODEL\.WEIGHTS"):
        build_backbone(cfg)
    cfg.MODEL.WEIGHTS = "model_final.pth"
    assert isinstance(build_backbone(cfg), TimmBackbone), "nothing to download: the file replaces it"


def test_weights_that_do_not_exist_are_refused() -> None:
    name = next(name for name in timm.list_models("efficientnet_*") if not timm.is_model_pretrained(name))
    with pytest.raises(ValueError, match=f"timm has no weights of {name}"):
        timm_models.create_model(name, accepted=frozenset(), in_channels=3, pretrained=True, drop_path_rate=0.0)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_builds_and_prepares_the_colors_of_its_weights(path) -> None:
    cfg = load_config(path, ["MODEL.TIMM.PRETRAINED", "False"])
    colors = {"mean": cfg.MODEL.PIXEL_MEAN, "std": cfg.MODEL.PIXEL_STD}
    assert timm_models.check_colors(cfg.MODEL.TIMM.NAME, channel_order=cfg.INPUT.FORMAT, **colors) is None
    swapped = timm_models.check_colors(cfg.MODEL.TIMM.NAME, channel_order="BGR", **colors)
    assert "INPUT.FORMAT RGB" in swapped
    with torch.device("meta"):
        assert list(build_backbone(cfg).output_shape()) == list(STRIDES)


def test_there_are_examples() -> None:
    assert [path.stem for path in EXAMPLES] == [
        f"mask2former_{name}_bs16_50ep" for name in ("convnext_tiny", "efficientnet_b0", "vit_small")
    ]


def test_colors_of_other_weights_are_warned_of(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
    cfg = timm_config("MODEL.TIMM.PRETRAINED", True, "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0], "INPUT.FORMAT", "RGB")
    with caplog.at_level(logging.WARNING):
        build_backbone(cfg)
    assert "test_efficientnet were trained with INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [" in caplog.text
