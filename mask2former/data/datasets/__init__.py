"""Data sets: category tables, the table of splits, and their registration."""

from mask2former.data.datasets.catalog import datasets_root, register_all

__all__ = ["datasets_root", "register_all"]
