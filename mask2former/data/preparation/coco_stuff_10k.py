"""COCO-Stuff-10k v1.0: MATLAB label files -> PNG, and pictures sorted into train and test.

coco/coco_stuff_10k/
  images/*.jpg
  annotations/*.mat           field S: 1 = unlabeled, 2..172 = class
  imageLists/{train,test}.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mask2former.data.preparation.common import link_or_copy, require_inputs, save_picture
from mask2former.data.preparation.jobs import FileJob, Outcome, make_files, total

try:
    import h5py
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("COCO-Stuff-10k needs h5py: pip install 'mask2former[data]'") from error

NUM_CLASSES = 171
VOID = 255
_SPLITS = ("train", "test")
_TREE = """  {folder}/images/*.jpg
  {folder}/annotations/*.mat
  {folder}/imageLists/{{train,test}}.txt"""
_FIELD = "S"


def prepare_coco_stuff_10k(root: Path, *, num_workers: int | None = None) -> Outcome:
    """Writes images_detectron2/{split}/*.jpg and annotations_detectron2/{split}/*.png (0..170, 255 = void).

    The pictures are second names of the files in images/, which take no space; copies where that is not possible.
    """
    folder = root / "coco" / "coco_stuff_10k"
    lists = {split: folder / "imageLists" / f"{split}.txt" for split in _SPLITS}
    require_inputs(
        [folder / "images", folder / "annotations", *lists.values()],
        tree=_TREE.format(folder=folder),
        origin="cocostuff-10k-v1.0.zip (COCO-Stuff 10K)",
    )
    images, labels = [], []
    for split, path in lists.items():
        for stem in path.read_text(encoding="utf-8").split():
            image = Path("images", f"{stem}.jpg")
            images.append(FileJob(folder / image, folder / "images_detectron2" / split / image.name))
            label = folder / "annotations" / f"{stem}.mat"
            labels.append(FileJob(label, folder / "annotations_detectron2" / split / f"{stem}.png"))
    return total(
        (
            make_files(_copy_image, images, description="COCO-Stuff-10k pictures", num_workers=num_workers),
            make_files(_convert_labels, labels, description="COCO-Stuff-10k labels", num_workers=num_workers),
        )
    )


def _copy_image(job: FileJob) -> None:
    link_or_copy(job.source, job.target)


def _convert_labels(job: FileJob) -> None:
    labels_HW = read_matlab_labels(job.source)
    lowest, highest = labels_HW.min(), labels_HW.max()
    if lowest < 0 or highest > NUM_CLASSES + 1:
        raise ValueError(f"{job.source}: labels must be 1..{NUM_CLASSES + 1}, found {lowest}..{highest}")
    classes_HW = labels_HW.astype(np.uint8) - np.uint8(2)  # 1, unlabeled, wraps around to void
    classes_HW[labels_HW == 0] = VOID  # would wrap around to 254, which nobody ignores
    save_picture(job.target, classes_HW)


def read_matlab_labels(path: Path) -> NDArray[Any]:
    """Field S of a MATLAB file as (H, W) numbers, whether it is HDF5 (MATLAB 7.3) or older."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, but a file of imageLists names it")
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                labels = np.asarray(file[_FIELD]).T  # HDF5 has MATLAB's columns as rows
        else:
            labels = loadmat(path, variable_names=[_FIELD])[_FIELD]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist, but a file of imageLists names it") from error
    except (OSError, ValueError, TypeError, KeyError, MatReadError) as error:
        raise ValueError(f"{path} is cut off or no MATLAB file with the field {_FIELD}: {error}") from error
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "uif":
        raise ValueError(f"{path}: field {_FIELD} must be a matrix of numbers, is {labels.dtype} {labels.shape}")
    return labels
