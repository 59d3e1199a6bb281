"""ADE20K's full data set: the 847 classes that MaskFormer trains, at sizes that loaders can bear.

ADE20K_2021_17_01/
  index_ade20k.pkl                                   the file names, a pickle
  images/ADE/{training,validation}/**/*.jpg
  images/ADE/{training,validation}/**/*_seg.png      class = R // 10 * 256 + G, 0 = none
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former.data.datasets.categories import load_categories
from mask2former.data.preparation.common import require_inputs, save_picture
from mask2former.data.preparation.jobs import FileJob, Outcome, make_files
from mask2former.data.reading import check_size, read_image
from mask2former.pickles import PlainUnpickler

VOID = 65535
SHORT_SIDE = 512
_JPEG_QUALITY = 95
_FOLDER = "ADE20K_2021_17_01"
_TREE = """  {folder}/index_ade20k.pkl
  {folder}/images/ADE/{{training,validation}}/**/*.jpg
  {folder}/images/ADE/{{training,validation}}/**/*_seg.png"""


@dataclass(frozen=True)
class _FullJob(FileJob):
    image: Path  # the picture that is made; `target`, its labels, is written after it


def prepare_ade20k_full(root: Path, *, num_workers: int | None = None) -> Outcome:
    """Writes images_detectron2/{split}/*.jpg and annotations_detectron2/{split}/*.tif (uint16, 65535 = void).

    Pictures whose shorter side exceeds 512 are reduced to that. Unlike the original, pictures are written with little
    compression, so that the second compression takes nothing from them that can be seen.
    """
    folder = root / _FOLDER
    index = folder / "index_ade20k.pkl"
    require_inputs([index], tree=_TREE.format(folder=folder), origin=f"{_FOLDER}.zip (the full ADE20K)")
    jobs = []
    for source_folder, name in read_index(index):
        split = "validation" if name.split("_")[1] == "val" else "training"
        stem = name.removesuffix(".jpg")
        labels = folder / "annotations_detectron2" / split / f"{stem}.tif"
        image = folder / "images_detectron2" / split / name
        jobs.append(_FullJob(root / source_folder / name, labels, image))
    require_inputs([job.source for job in jobs[:1]], tree=_TREE.format(folder=folder), origin=f"{_FOLDER}.zip")
    for target in {job.image.parent for job in jobs}:
        target.mkdir(parents=True, exist_ok=True)
    return make_files(_convert, jobs, description="ADE20K full", num_workers=num_workers)


def _convert(job: _FullJob) -> None:
    with Image.open(job.source) as picture:
        # The pixels as they are stored: labels were drawn without regard to a rotation that EXIF data ask for.
        pixels_HW3 = np.asarray(picture.convert("RGB"))
    segmentation = job.source.with_name(f"{job.source.stem}_seg.png")
    codes_HW3 = read_image(str(segmentation), "RGB")
    check_size(str(segmentation), codes_HW3.shape, pixels_HW3.shape, str(job.source))
    numbers_HW = codes_HW3[..., 0].astype(np.uint16) // 10 * 256 + codes_HW3[..., 1]
    classes_HW = _class_of_number()[numbers_HW]
    height, width = classes_HW.shape
    if min(height, width) > SHORT_SIDE:
        scale = SHORT_SIDE / min(height, width)
        size = (round(width * scale), round(height * scale))  # OpenCV's order
        pixels_HW3 = cv2.resize(pixels_HW3, size, interpolation=cv2.INTER_LINEAR)
        classes_HW = cv2.resize(classes_HW, size, interpolation=cv2.INTER_NEAREST)
    save_picture(job.image, pixels_HW3, quality=_JPEG_QUALITY)
    save_picture(job.target, classes_HW)


@cache
def _class_of_number() -> NDArray[np.uint16]:
    """ADE20K's number of a class -> 0..846, or 65535 for the classes that are not trained and for none."""
    classes = np.full(26 * 256, VOID, dtype=np.uint16)  # red is at most 255
    numbers = np.array([category.key for category in load_categories("ade20k_full_847")], dtype=np.intp)
    classes[numbers] = np.arange(len(numbers))
    return classes


def read_index(path: Path) -> list[tuple[str, str]]:
    """(folder, file name) of every picture that index_ade20k.pkl lists; folders are relative to the root.

    The pickle is read without running what it contains: only plain containers and NumPy arrays are accepted.
    """
    try:
        with open(path, "rb") as file:
            index = PlainUnpickler(file).load()
        folders, names = list(index["folder"]), list(index["filename"])
        pairs = [(str(folder), str(name)) for folder, name in zip(folders, names, strict=True)]
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is cut off or not the index of ADE20K: {type(error).__name__}: {error}") from error
    strange = next((name for _, name in pairs if not re.fullmatch(r"[^/\\_]+_[^/\\]+\.jpg", name)), None)
    if strange is not None or not pairs:
        raise ValueError(f"{path} must list pictures named like ADE_train_00000001.jpg, it has {strange!r}")
    return pairs
