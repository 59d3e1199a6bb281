"""Weights from wherever `MODEL.WEIGHTS` may point."""

from __future__ import annotations

from pathlib import Path

from mask2former.modeling.transformers_config import config_overrides
from mask2former.modeling.transformers_folder import read_transformers
from mask2former.modeling.weight_files import WeightFile, read_weight_file

__all__ = ["TRANSFORMERS_PREFIX", "is_transformers_path", "read_weights"]

#: `MODEL.WEIGHTS hf:/path` names a folder or file of Hugging Face's transformers.
TRANSFORMERS_PREFIX = "hf:"


def is_transformers_path(path: str | Path) -> bool:
    """Whether `path` is "hf:..." or a folder, which only transformers makes of weights."""
    return str(path).startswith(TRANSFORMERS_PREFIX) or Path(path).is_dir()


def read_weights(path: str | Path) -> WeightFile:
    """Read a single file of any kind, see `read_weight_file`, or what transformers wrote.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is cut off, is no checkpoint, or contains objects that are refused.
    """
    if not is_transformers_path(path):
        return read_weight_file(path)
    checkpoint = read_transformers(Path(str(path).removeprefix(TRANSFORMERS_PREFIX)))
    settings = config_overrides(checkpoint.config) if checkpoint.config is not None else {}
    return WeightFile(checkpoint.tensors, settings=settings)
