"""Every kind of part that a config selects by name, with the call that a part of that kind must answer.

Backbones, heads and meta-architectures use Detectron2's registries. Pixel decoders share Detectron2's registry of
heads, because the published names were registered there and outside code looks them up there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "PIXEL_DECODER_REGISTRY",
    "TRANSFORMER_DECODER_REGISTRY",
    "check_model_names",
    "lookup",
    "register_mapper",
]

#: `Class(cfg, input_shape: dict[str, ShapeSpec])` with
#: `forward_features(features: dict[str, Tensor]) -> (mask_features, encoder_features | None, multi_scale_features)`:
#: per-pixel embeddings (N, E, H/4, W/4), an optional single map for decoders that read one, and three maps ordered from
#: coarse to fine. N counts frames: clips are folded into the batch.
PIXEL_DECODER_REGISTRY = SEM_SEG_HEADS_REGISTRY

#: `Class(cfg, in_channels: int, mask_classification: bool)` with
#: `forward(features, mask_features, *, num_frames: int = 1, all_layers: bool = False) -> Predictions`,
#: where `features` is what `MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE` names: a list of three maps, or one map. Without
#: mask classification (in per-pixel heads) query k stands for class k and class logits are empty, (L, B, Q, 0).
TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")

#: `Class(cfg, is_train: bool)` with `__call__(record: dict) -> dict`: a Detectron2 dataset record in, the sample that
#: the model reads out (`image`, `instances`, ...). Names are the values of `INPUT.DATASET_MAPPER_NAME`.
DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")

MapperClass = TypeVar("MapperClass", bound=type)


def register_mapper(name: str) -> Callable[[MapperClass], MapperClass]:
    """Registers a mapper under the name that configs use, which is not the name of the class."""

    def register(mapper_class: MapperClass) -> MapperClass:
        DATASET_MAPPER_REGISTRY._do_register(name, mapper_class)
        return mapper_class

    return register


def lookup(registry: Registry, name: str, config_key: str) -> Any:
    """The object registered under `name`.

    Raises:
        ValueError: nothing has that name; the message gives the config key and the names that exist.
    """
    if name not in registry:
        known = ", ".join(sorted(registered for registered, _ in registry))
        raise ValueError(f"{config_key}={name!r} is unknown; choose from: {known}")
    return registry.get(name)


def check_model_names(cfg: CfgNode) -> None:
    """Look up the names that Detectron2's builders look up, whose own errors give neither key nor choices.

    Raises:
        ValueError: a name is unknown; see `lookup`.
    """
    lookup(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    lookup(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    lookup(SEM_SEG_HEADS_REGISTRY, cfg.MODEL.SEM_SEG_HEAD.NAME, "MODEL.SEM_SEG_HEAD.NAME")
