"""Names of all ages and libraries are recognized by what they are, and lead to the right tensors."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from mask2former.config import load_config
from mask2former.modeling.checkpoint import load_weights
from mask2former.modeling.weight_files import WeightFile
from mask2former.modeling.weight_fitting import fit_weights
from mask2former.modeling.weight_names import backbone_names, current_names, torchvision_to_ours, unwrapped
from tests.golden import CONFIGS, published_state_dicts
from tests.tiny_model import tiny_config, tiny_model

ARCHITECTURES = published_state_dicts()["architectures"]
MASK2FORMER = [name for name in ARCHITECTURES if name.startswith("mask2former_")]
R50, SWIN_TINY = "mask2former_R50_FrozenBN", "mask2former_swinT"


def _published(architecture):
    return {name: torch.empty(shape, device="meta") for name, shape in ARCHITECTURES[architecture]["tensors"].items()}


def _old_name(name):
    """As MaskFormer's first release wrote it."""
    return name.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_old_names_of_every_architecture_become_current(architecture):
    tensors = _published(architecture)
    renamed = current_names({_old_name(name): tensor for name, tensor in tensors.items()})
    assert list(renamed) == list(tensors)
    assert all(renamed[name] is tensor for name, tensor in tensors.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_current_names_without_version_metadata_stay(architecture):
    # The original renamed these, because a plain dict carries no version: the pixel decoder stayed random.
    tensors = _published(architecture)
    assert current_names(tensors) == tensors


@pytest.mark.parametrize("old", ["sem_seg_head.layer_1.weight", "sem_seg_head.predictor.static_query.weight"])
def test_a_tensor_under_its_old_and_its_current_name_is_refused(old):
    current = next(iter(current_names({old: torch.zeros(1)})))
    with pytest.raises(ValueError, match=f"'x.pth': it holds '{current}' twice"):
        fit_weights({current: (1,)}, {old: torch.zeros(1), current: torch.ones(1)}, source="x.pth")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_all_names_is_taken_off(wrapper):
    assert list(unwrapped({f"{wrapper}backbone.weight": torch.zeros(1)})) == ["backbone.weight"]
    mixed = {"module.weight": torch.zeros(1), "weight": torch.zeros(1)}
    assert unwrapped(mixed) is mixed


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv3.weight", "res2.0.conv3.weight"),
        ("layer4.2.bn2.bias", "res5.2.conv2.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
    ],
)
def test_names_of_torchvisions_resnet_become_detectron2s(name, ours):
    assert torchvision_to_ours(name) == ours


def _state_without_memory(create):
    with torch.device("meta"):
        return create().state_dict()


def _wanted(architecture):
    return {name: tuple(shape) for name, shape in ARCHITECTURES[architecture]["tensors"].items()}


@pytest.mark.parametrize(
    ("architecture", "create"),
    [
        (R50, torchvision.models.resnet50),
        ("mask2former_R101_SyncBN", torchvision.models.resnet101),
        (R50, lambda: timm.create_model("resnet50")),
        (SWIN_TINY, lambda: timm.create_model("swin_tiny_patch4_window7_224")),
        ("mask2former_swinS", lambda: timm.create_model("swin_small_patch4_window7_224")),
        ("mask2former_swinB_w12", lambda: timm.create_model("swin_base_patch4_window12_384")),
    ],
)
def test_every_tensor_of_a_published_backbone_finds_its_place(architecture, create):
    tensors = _state_without_memory(create)
    chosen, report = fit_weights(_wanted(architecture), tensors)
    assert {name.split(".")[0] for name in chosen} == {"backbone"}
    output_norms = tuple(f"backbone.norm{stage}." for stage in range(4))  # in no file of ImageNet
    assert all(name.startswith(("sem_seg_head.", *output_norms)) for name in report.fresh)
    assert all(name.split(".")[1] in ("fc", "head", "norm") for name in report.unused)
    assert len(chosen) + len(report.unused) == sum("num_batches_tracked" not in name for name in tensors)


def test_a_resnet_of_torchvision_computes_the_same_here():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    overrides = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18]
    overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]]
    ours = build_model(tiny_config(*overrides)).eval()
    load_weights(ours, WeightFile(theirs.state_dict()))
    images = torch.randn(1, 3, 64, 64)
    x = theirs.maxpool(F.relu(theirs.bn1(theirs.conv1(images))))
    with torch.no_grad():
        features = ours.backbone(images)
        for stage in range(1, 5):
            x = theirs.get_submodule(f"layer{stage}")(x)
            torch.testing.assert_close(features[f"res{stage + 1}"], x, rtol=1e-4, atol=1e-4)


def test_a_swin_of_timm_computes_the_same_here():
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4}
    theirs = timm.models.swin_transformer.SwinTransformer(img_size=128, num_classes=0, **sizes).eval()
    ours = tiny_model("MODEL.SWIN.DEPTHS", [2, 1, 1, 1]).eval()
    report = load_weights(ours, WeightFile(theirs.state_dict()))
    assert sum("downsample" in name for name in report.renamed) == 9
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        features = ours.backbone(images)
        for name, x_BChw in zip(features, theirs.forward_intermediates(images, intermediates_only=True), strict=True):
            normalized = F.layer_norm(x_BChw.permute(0, 2, 3, 1), x_BChw.shape[1:2]).permute(0, 3, 1, 2)
            torch.testing.assert_close(features[name], normalized, rtol=1e-3, atol=1e-3)


def _of_authors(model):
    """A Swin classifier as its authors save it: our backbone's names, no output norms, a head, masks of shifts."""
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("backbone.") and not name.startswith("backbone.norm")
    }
    extra = {
        "norm.weight": torch.ones(64),
        "head.weight": torch.ones(21841, 64),
        "layers.0.blocks.1.attn_mask": torch.ones(4),
    }
    return {**tensors, **extra}


def test_a_swin_of_its_authors_is_loaded_and_its_classifier_is_not():
    model = tiny_model()
    given = _of_authors(model)
    with torch.no_grad():
        given = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    report = load_weights(model, WeightFile(given))
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone.") and not name.startswith("backbone.norm"):
            assert torch.equal(tensor, given[name.removeprefix("backbone.")]), name
    assert report.unused == ["backbone.norm.weight", "backbone.head.weight"] and not report.renamed


def _caffe2_names(names):
    replacements = (("stem.", ""), (".shortcut.", ".branch1."), (".conv1.", ".branch2a."), (".conv2.", ".branch2b."))
    for name in names:
        if name.startswith("backbone.") and "running" not in name:
            blob = name.removeprefix("backbone.")
            for old, new in (*replacements, (".conv3.", ".branch2c."), ("norm.weight", "bn.s"), ("norm.bias", "bn.b")):
                blob = blob.replace(old, new)
            blob = "res_conv1_bn_" + blob[-1] if blob.startswith("conv1.bn") else blob
            yield name, blob.replace(".weight", ".w").replace(".", "_")


def test_a_backbone_of_caffe2_keeps_the_statistics_of_nothing():
    wanted = _wanted(R50)
    blobs = {blob: torch.empty(wanted[name], device="meta") for name, blob in _caffe2_names(wanted)}
    blobs |= {"fc1000_w": torch.empty(1000, 2048, device="meta"), "conv1_w_momentum": torch.empty(1, device="meta")}
    chosen, report = fit_weights(wanted, blobs)
    assert set(chosen) == {name for name in wanted if name.startswith("backbone.") and "running" not in name}
    assert report.unused == ["backbone.fc1000.weight"]
    assert {name for name in report.fresh if name.startswith("backbone.")} == {
        name for name in wanted if "running" in name
    }


def test_statistics_that_only_some_norms_lack_are_missed():
    wanted = _wanted(R50)
    tensors = {
        name: torch.empty(shape, device="meta") for name, shape in wanted.items() if name.startswith("backbone.")
    }
    del tensors["backbone.res3.0.conv1.norm.running_var"]
    with pytest.raises(ValueError, match=r"1 missing, e.g. backbone.res3.0.conv1.norm.running_var"):
        fit_weights(wanted, {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()})


def test_the_classifier_that_detectron2_counts_to_the_stem_is_not_missed():
    wanted = _wanted(R50)
    given = {name.removeprefix("backbone."): torch.empty(shape, device="meta") for name, shape in wanted.items()}
    given = {name: tensor for name, tensor in given.items() if not name.startswith(("sem_seg_head.", "criterion."))}
    chosen, report = fit_weights(wanted, {**given, "stem.fc.weight": torch.empty(1000, 2048, device="meta")})
    assert len(chosen) == len(given) and report.unused == ["backbone.stem.fc.weight"]


@pytest.mark.parametrize(
    ("architecture", "create", "message"),
    [
        (R50, torchvision.models.resnet101, r"68 \w+|that the model does not have, e.g. backbone.res4.6"),
        ("mask2former_R101_SyncBN", torchvision.models.resnet50, "missing, e.g. backbone.res4.6"),
        (SWIN_TINY, lambda: timm.create_model("swin_small_patch4_window7_224"), "backbone.layers.2.blocks.6"),
        (SWIN_TINY, lambda: timm.create_model("swin_base_patch4_window7_224"), r"of another shape.*\(128, 3, 4, 4\)"),
        (R50, lambda: timm.create_model("resnet50d"), "backbone."),
    ],
)
def test_a_backbone_of_another_depth_or_width_is_refused(architecture, create, message):
    tensors = _state_without_memory(create)
    with pytest.raises(ValueError, match=f"of another architecture .*{message}"):
        fit_weights(_wanted(architecture), tensors)


def test_a_name_that_ends_many_others_goes_only_where_the_rest_goes():
    wanted = ["backbone.a.weight", "backbone.a.norm.weight", "backbone.b.norm.weight", "head.norm.weight"]
    tensors = dict.fromkeys(["a.weight", "a.norm.weight", "norm.weight"], torch.zeros(1))
    names, beginning = backbone_names(tensors, wanted)
    assert beginning == "backbone."
    assert names == {f"backbone.{name}": name for name in tensors}


def test_a_file_that_fits_two_places_equally_well_is_refused():
    wanted = {"backbone.a.norm.weight": (1,), "backbone.b.norm.weight": (1,)}
    with pytest.raises(
        ValueError, match=r"'x.pth': 1 of its 1 tensors .* fit 2 places equally well \(backbone.a., backbone.b., ...\)"
    ):
        fit_weights(wanted, {"norm.weight": torch.zeros(1)}, source="x.pth")


@pytest.mark.parametrize(
    "file", ["ade20k-150/maskformer_R50_bs16_160k.yaml", "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml"]
)
def test_checkpoints_of_the_first_maskformer_load_into_its_recipes(file):
    with torch.device("meta"):
        model = build_model(load_config(CONFIGS / file, ["MODEL.DEVICE", "meta"]))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    old = {_old_name(name): torch.empty(shape, device="meta") for name, shape in wanted.items()}
    assert any(name.startswith("sem_seg_head.adapter_1.") for name in old)
    chosen, report = fit_weights(wanted, old)
    assert set(report.renamed) == {name for name in wanted if name.startswith("sem_seg_head.pixel_decoder.")}
    assert not (report.fresh or report.unused or report.resized or report.reset) and len(chosen) == len(report.loaded)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("convnext_tiny", "convnext_tiny"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("vit_small", "vit_small_patch16_224"),
    ],
)
def test_plain_weights_of_timm_fill_the_backbone_of_timm(file, name):
    config = CONFIGS / f"coco/panoptic-segmentation/timm/mask2former_{file}_bs16_50ep.yaml"
    cfg = load_config(config, ["MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", False])
    with torch.device("meta"):
        model = build_model(cfg)
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    tensors = _state_without_memory(lambda: timm.create_model(name))
    chosen, report = fit_weights(wanted, tensors)
    fresh = {key.split(".")[1] for key in report.fresh if key.startswith("backbone.")}
    assert fresh <= {"pyramid"} and not report.renamed
    assert all(key.startswith("backbone.model.") for key in chosen)
    assert {key.split(".")[2] for key in report.unused} <= {"classifier", "conv_head", "bn2", "head", "norm", "fc_norm"}
