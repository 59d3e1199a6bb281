"""ADE20K, the 150 classes of SceneParse: where its files are, and what a pixel of its label pictures means.

The tree below the root of all data sets, "annotations_instance" being a download of its own:

    ADEChallengeData2016/
      images/{training,validation}/*.jpg
      annotations/{training,validation}/*.png            0 = other, 1..150 = class
      annotations_instance/{training,validation}/*.png   red = instance class 1..100, green = instance 1..255, 0 = none

The original scripts found their class lists only when they were started in the root of the repository; here the lists
are part of the package.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask2former.data.datasets.categories import load_categories
from mask2former.data.preparation.common import require_inputs
from mask2former.data.reading import read_class_map, read_image

#: Names of our splits -> names of ADE20K's folders.
SPLITS = {"train": "training", "val": "validation"}
NUM_CLASSES = 150
VOID = 255

_FOLDER = "ADEChallengeData2016"
_ORIGIN = {
    "images": "ADEChallengeData2016.zip (scene parsing benchmark)",
    "annotations": "ADEChallengeData2016.zip (scene parsing benchmark)",
    "annotations_instance": "annotations_instance.tar (instance segmentation challenge of the same benchmark)",
}


def ade20k_folder(root: Path, needed: tuple[str, ...], splits: tuple[str, ...]) -> Path:
    """The data set's folder below the root of all data sets.

    Raises:
        FileNotFoundError: one of the `needed` folders ("annotations", ...) is missing for one of the splits.
    """
    folder = root / _FOLDER
    parts = "{" + ",".join(SPLITS[split] for split in splits) + "}"
    tree = "\n".join(f"  {folder}/{name}/{parts}/*.png" for name in needed)
    for name in needed:
        require_inputs((folder / name / SPLITS[split] for split in splits), tree=tree, origin=_ORIGIN[name])
    return folder


def read_semantic(path: Path) -> NDArray[np.uint8]:
    """A SceneParse label picture as (H, W) classes 0..149, 255 = void."""
    labels_HW = read_class_map(str(path))
    if labels_HW.dtype != np.uint8 or labels_HW.max(initial=0) > NUM_CLASSES:
        raise ValueError(
            f"{path} must hold labels 0..{NUM_CLASSES} (0 = other), its largest is {labels_HW.max(initial=0)}; is it "
            "a picture of annotations/ as downloaded?"
        )
    classes_HW: NDArray[np.uint8] = labels_HW - np.uint8(1)  # 0 wraps around to void
    return classes_HW


def read_instances(path: Path) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """An instance label picture.

    Returns:
        (H, W) instances 1..255, 0 = none; and the class 0..149 of every instance that occurs.
    """
    rgb_HW3 = read_image(str(path), "RGB")
    instances_HW = rgb_HW3[..., 1]
    # How often each pair of instance and class occurs, in one pass over the pixels.
    pairs_HW = instances_HW.astype(np.intp) * 256 + rgb_HW3[..., 0]
    counts = np.bincount(pairs_HW.ravel(), minlength=256 * 256).reshape(256, 256)
    categories = load_categories("ade20k_instance_100")
    classes: dict[int, int] = {}
    for instance in (np.flatnonzero(counts[1:].any(axis=1)) + 1).tolist():
        found = np.flatnonzero(counts[instance]).tolist()
        if len(found) > 1 or not 1 <= found[0] <= len(categories):
            raise ValueError(
                f"{path}: instance {instance} (green) must have one class 1..{len(categories)} (red), has {found}"
            )
        classes[instance] = categories[found[0] - 1].id
    return instances_HW, classes
