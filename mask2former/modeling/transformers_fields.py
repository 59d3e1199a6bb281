"""Fields of a transformers config and keys of ours that say the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from detectron2.config import CfgNode

__all__ = ["Section", "check_fields"]


@dataclass(frozen=True)
class Section:
    """One object of transformers' `config.json` beside the keys of ours that describe the same part of the model.

    Attributes:
        prefix: where the object lies in the file, for messages.
        shared: (their field, our key, their default), for what decides about tensors and results.
        written: (their field, our key), for what matters in training only.
        theirs: the only value of a field that means the same as our model.
        ours: the only value of a key that means the same as their model.
    """

    prefix: str
    shared: tuple[tuple[str, str, Any], ...]
    written: tuple[tuple[str, str], ...] = ()
    theirs: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys and values for an object of theirs; a field that is left out has their default.

        Raises:
            ValueError: a field has a value that we cannot represent, or one of the wrong type.
        """
        check_fields(config, self.theirs, self.prefix)
        values = {}
        for name, key, default in self.shared:
            values[key] = config.get(name, default)
            if not _is_like(values[key], default):
                raise ValueError(f"{self.prefix}{name}={values[key]!r} must be like {default!r}")
        return {**self.ours, **values}

    def write(self, cfg: CfgNode) -> dict[str, Any]:
        """Their fields and values for a config of ours.

        Raises:
            ValueError: a key has a value that transformers cannot represent.
        """
        for key, needed in self.ours.items():
            if (value := _value(cfg, key)) != needed:
                raise ValueError(
                    f"{key}={value!r} has no counterpart in transformers' Mask2Former, only {needed!r} has"
                )
        shared = {name: _value(cfg, key) for name, key, _ in self.shared}
        return {**self.theirs, **shared, **{name: _value(cfg, key) for name, key in self.written}}


def check_fields(config: Mapping[str, Any], needed: Mapping[str, Any], prefix: str) -> None:
    """Raise ValueError if a field of `config` is there and differs from the value needed."""
    for name, value in needed.items():
        if (given := config.get(name, value)) != value:
            raise ValueError(f"{prefix}{name}={given!r} cannot be represented here, only {value!r} can")


def _value(cfg: CfgNode, key: str) -> Any:
    value = reduce(getattr, key.split("."), cfg)
    return list(value) if isinstance(value, tuple) else value


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, list):
        return isinstance(value, list) and len(value) == len(default) and all(map(_is_like, value, default))
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
