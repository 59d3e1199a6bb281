"""Data sets, mappers and loaders. Importing registers the names and reads no file."""

from mask2former.data.datasets import register_all

register_all()

__all__ = ["register_all"]
