"""What the tensors of a file are called in our models, decided by the names themselves.

Never by version numbers or the name of the file: files saved without version metadata would otherwise be renamed twice
and leave the pixel decoder at its random start.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from torch import Tensor

from mask2former.modeling.transformers_weights import from_transformers

__all__ = [
    "backbone_names",
    "current_names",
    "is_classifier",
    "is_derived",
    "part",
    "torchvision_to_ours",
    "unwrapped",
]

_BACKBONE = "backbone."
_HEAD = "sem_seg_head."
#: What wrappers for parallel and compiled models put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
#: Recomputed from the config by every model, so neither missed nor used. The class weights of the loss belong here: a
#: file must not override MODEL.MASK_FORMER.NO_OBJECT_WEIGHT.
_DERIVED = ("criterion.empty_weight", "pixel_mean", "pixel_std")
_DERIVED_ENDINGS = (".num_batches_tracked", ".relative_position_index", ".attn_mask")
#: torchvision's and timm's ResNets -> Detectron2's, applied in order.
_RESNET_RENAMES = (
    (re.compile(r"^(?=conv1\.|bn1\.)"), "stem."),
    (re.compile(r"^layer(\d)\."), lambda match: f"res{int(match[1]) + 1}."),
    (re.compile(r"\bbn(\d)\."), r"conv\1.norm."),
    (re.compile(r"\bdownsample\.0\."), "shortcut."),
    (re.compile(r"\bdownsample\.1\."), "shortcut.norm."),
)
_CLASSIFIER = re.compile(r"(.*\.)?(fc|head|classifier|linear|fc1000|pred)(\.fc)?\.(weight|bias)")


def part(name: str) -> str:
    """The box of the model that a tensor belongs to: "backbone", "sem_seg_head.pixel_decoder", ..."""
    return ".".join(name.split(".")[: 2 if name.startswith(_HEAD) else 1])


def is_derived(name: str) -> bool:
    """Whether every model computes this tensor itself."""
    return name in _DERIVED or name.endswith(_DERIVED_ENDINGS)


def is_classifier(name: str) -> bool:
    """Whether this is the last layer of an image classifier, under any of its usual names."""
    return _CLASSIFIER.fullmatch(name) is not None


def unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors without what wrappers for parallel and compiled models put before all names."""
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a segmentation model of any age, or of transformers, under the names of our models.

    Queries were called `static_query`, and the pixel decoder once lay directly in the head (MaskFormer's checkpoints).
    Names that are current already stay, so the function may be applied any number of times; those of a backbone alone
    stay too.

    Raises:
        ValueError: the file has a tensor under its old and its current name.
    """
    if any(name.startswith("model.pixel_level_module.") for name in tensors):
        return from_transformers(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        current = name.replace(".static_query.", ".query_feat.")
        inner = current.removeprefix(_HEAD)
        if inner != current and not inner.startswith(("pixel_decoder.", "predictor.")):
            current = f"{_HEAD}pixel_decoder.{inner}"
        if current in renamed:
            raise ValueError(f"it holds {current!r} twice, once under an old name: one of them must be taken out")
        renamed[current] = tensor
    return renamed


def backbone_names(names: Collection[str], wanted: Collection[str]) -> tuple[dict[str, str], str]:
    """Where the tensors of a backbone file belong in a model.

    Such files lack the beginning of the model's names ("res2.0.conv1.weight" for "backbone.res2..."), and each library
    has names of its own. The naming and the beginning that hit most of the model's backbone are taken, so that a name
    that ends many others by chance ("norm.weight") goes nowhere else.

    Args:
        names: of the file.
        wanted: names of the model.

    Returns:
        name in the model's terms -> name in the file, and the beginning that was added; both empty if nothing fits.

    Raises:
        ValueError: two places fit equally well.
    """
    targets = [name for name in wanted if name.startswith(_BACKBONE)]
    candidates = []
    for naming in _NAMINGS:
        new_names = naming(names)
        hits = Counter(
            target.removesuffix(suffix) for target in targets for suffix in _suffixes(target) if suffix in new_names
        )
        candidates += [(count, beginning, new_names) for beginning, count in hits.items()]
    if not candidates:
        return {}, ""
    most = max(count for count, _, _ in candidates)
    best = {beginning: new_names for count, beginning, new_names in reversed(candidates) if count == most}
    if len(best) > 1:
        places = sorted(best)
        raise ValueError(
            f"{most} of its {len(names)} tensors have names of the model's backbone, and fit {len(places)} places "
            f"equally well ({', '.join(places[:3])}, ...): it is probably of another backbone"
        )
    ((beginning, new_names),) = best.items()
    return {beginning + new_name: name for new_name, name in new_names.items()}, beginning


def torchvision_to_ours(name: str) -> str:
    """Detectron2's name for a tensor of a ResNet of torchvision or timm: "layer1.0.bn1" -> "res2.0.conv1.norm"."""
    for pattern, replacement in _RESNET_RENAMES:
        name = pattern.sub(replacement, name)
    return name


def _suffixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _unchanged(names: Collection[str]) -> dict[str, str]:
    return {name: name for name in names}


def _resnet(names: Collection[str]) -> dict[str, str]:
    return {torchvision_to_ours(name): name for name in names}


def _timm_swin(names: Collection[str]) -> dict[str, str]:
    """timm merges patches at the beginning of a stage, Swin's authors and this project at the end of the one before."""
    pattern = re.compile(r"^layers\.(\d+)\.downsample\.")
    return {pattern.sub(lambda match: f"layers.{int(match[1]) - 1}.downsample.", name): name for name in names}


def _caffe2(names: Collection[str]) -> dict[str, str]:
    """Detectron1's names: "res2_0_branch2a_w"."""
    if any("." in name for name in names):
        return {}
    blobs = [name for name in names if not name.endswith("_momentum")]
    return dict(zip(convert_basic_c2_names(blobs), blobs, strict=True))


#: Ways to name the tensors of a backbone: names in the file -> {name in the model without its beginning: name there}.
_NAMINGS: tuple[Callable[[Collection[str]], dict[str, str]], ...] = (
    _unchanged,
    _resnet,
    _timm_swin,
    _caffe2,
)
