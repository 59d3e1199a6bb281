"""Reads a registered data set and tells what would go wrong in training: `python -m mask2former.data.check NAME`."""

from mask2former.data.check.report import page
from mask2former.data.check.run import CheckedDataset, check_dataset
from mask2former.data.check.samples import save_samples

__all__ = ["CheckedDataset", "check_dataset", "page", "save_samples"]
