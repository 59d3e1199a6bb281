"""Tensors of transformers' `Mask2FormerForUniversalSegmentation` under the names of this project, both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .transformers_names import BACKBONE, our_name, their_names

__all__ = ["DERIVED_ENDINGS", "from_transformers", "to_transformers"]

#: A norm that transformers 5.x keeps and saves although no output passes through it.
_UNUSED_NORM = f"{BACKBONE}swin.layernorm."
#: What follows from the window size, and what counts the training steps of norms.
DERIVED_ENDINGS = (".relative_position_index", ".num_batches_tracked")


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, and join the query, key and value projections that transformers keeps apart.

    Args:
        state_dict: of a `Mask2FormerForUniversalSegmentation` with a Swin or ResNet backbone: the content of a file of
            transformers 4.x or 5.x, or of a model in memory.

    Returns:
        The same tensors under our names, but no `relative_position_index`, which follows from the window size, and no
        `num_batches_tracked`.

    Raises:
        ValueError: a name belongs to none of the parts known here, or a third of a joined projection is missing.
    """
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state_dict.items():
        if name.startswith(_UNUSED_NORM) or name.endswith(DERIVED_ENDINGS):
            continue
        if (translation := our_name(name)) is None:
            raise ValueError(
                f"{name!r} is no tensor of a Mask2FormerForUniversalSegmentation with a Swin or ResNet backbone"
            )
        new_name, part = translation
        if part is None:
            converted[new_name] = tensor
        else:
            parts.setdefault(new_name, {})[part] = tensor
    for name, thirds in parts.items():
        missing = [third for part, (third, _) in enumerate(their_names(name)) if part not in thirds]
        if missing:
            raise ValueError(f"{missing[0]!r} is missing: it is a third of {name!r}")
        converted[name] = torch.cat([thirds[part] for part in range(3)])
    return converted


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_transformers`, under the names of transformers' files.

    Args:
        state_dict: of a `MaskFormer` with a Swin or ResNet backbone.

    Returns:
        The same tensors (thirds of a projection are views of it) without `relative_position_index`, and what
        transformers alone keeps: `num_batches_tracked` of norms, here 0, and the unused norm of Swin.

    Raises:
        ValueError: transformers' Mask2Former has no such tensor.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name.endswith(DERIVED_ENDINGS):
            continue
        translations = their_names(name)
        if not translations:
            raise ValueError(f"{name!r} has no counterpart in transformers' Mask2Former with a Swin or ResNet backbone")
        for new_name, part in translations:
            converted[new_name] = tensor if part is None else tensor.chunk(3)[part]
    for name in [name for name in converted if name.endswith(".running_var")]:
        converted[name.replace(".running_var", ".num_batches_tracked")] = torch.zeros((), dtype=torch.int64)
    if (last_norm := converted.get(f"{BACKBONE}hidden_states_norms.stage4.weight")) is not None:
        converted[f"{_UNUSED_NORM}weight"] = torch.ones_like(last_norm)
        converted[f"{_UNUSED_NORM}bias"] = torch.zeros_like(last_norm)
    return converted
