"""Data sets: category tables, the table of splits, and their registration."""

from mask2former.data.datasets.catalog import register_all
from mask2former.data.datasets.metadata import datasets_root

__all__ = ["datasets_root", "register_all"]
