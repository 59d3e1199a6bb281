"""Packages of the extra `cluster`, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_parquet", "import_ray"]


def import_parquet() -> Any:
    """pyarrow.parquet."""
    return _import("pyarrow.parquet", "Parquet tables need pyarrow")


def import_ray() -> Any:
    """ray, with ray.data."""
    _import("ray.data", "--engine ray needs Ray Data")
    return _import("ray", "--engine ray needs Ray")


def _import(module: str, need: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{need}: pip install 'mask2former[cluster]' ({error})") from error
