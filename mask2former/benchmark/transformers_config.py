"""The architecture of a config as transformers' own class."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from mask2former.modeling.transformers_config import to_transformers_config

__all__ = ["transformers_config"]


def transformers_config(cfg: CfgNode) -> Any:
    """The `Mask2FormerConfig` of the same architecture.

    Raises:
        ValueError: transformers has no such architecture; the message names the config key.
        ModuleNotFoundError: transformers is not installed (extra "hf").
    """
    import transformers

    return transformers.Mask2FormerConfig.from_dict(to_transformers_config(cfg))
