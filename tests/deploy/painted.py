"""Pictures whose colors are their own truth, and a segmenter that reads it: results of tiles can be checked exactly."""

from __future__ import annotations

import numpy as np

from mask2former.deploy.mask_runs import runs_of_mask, united
from mask2former.deploy.results import ClassInfo, Segment, Segmentation
from mask2former.deploy.segments import with_runs

CLASSES = (
    ClassInfo("sky", (90, 160, 250), 1, False),
    ClassInfo("ground", (120, 90, 30), 2, False),
    ClassInfo("cat", (250, 80, 80), 17, True),
    ClassInfo("dog", (250, 200, 0), 18, True),
)
EMPTY = {"size": [1, 1], "counts": "1"}


def painted(size, num_objects, *, seed=0, radius=(4, 14)):
    """(H, W, 3): red is the class + 1, green and blue number the objects; discs of cats and dogs that do not touch."""
    random = np.random.default_rng(seed)
    height, width = size
    image = np.ones((height, width, 3), dtype=np.uint8) * (1, 0, 0)
    image[height // 2 :, :, 0] = 2
    taken = np.zeros(size, dtype=bool)
    rows, columns = np.mgrid[:height, :width]
    number = 0
    while number < num_objects:
        y, x, r = random.uniform(0, height), random.uniform(0, width), random.uniform(*radius)
        distance = np.hypot(rows - y, columns - x)
        if not (distance < r).any() or taken[distance < r + 2].any():
            continue
        number += 1
        taken |= distance < r
        image[distance < r] = (3 + number % 2, number // 256, number % 256)
    return image.astype(np.uint8)


def segment_of(mask, category, score=None):
    """A `Segment` of a bool mask."""
    info = CLASSES[category]
    bare = Segment(category, info.name, info.dataset_id, info.is_thing, score, (0, 0, 0, 0), 0, EMPTY)
    return with_runs(bare, united(runs_of_mask(mask, mask.shape[0])), mask.shape)


def result_of(task, masks, categories, scores=None, *, size=None):
    """A `Segmentation` of masks, which must not overlap unless they are instances."""
    size = masks[0].shape if size is None else size
    scores = [None] * len(masks) if scores is None else scores
    segments = tuple(map(segment_of, masks, categories, scores))
    labels = confidence = None
    if task != "instance":
        labels = np.full(size, -1 if task == "semantic" else 0, dtype=np.int32)
        for index, (mask, category) in enumerate(zip(masks, categories, strict=True)):
            labels[mask] = category if task == "semantic" else index + 1
    if task == "semantic":
        confidence = np.ones(size, dtype=np.float32)
    return Segmentation(task, *size, segments, labels, confidence, CLASSES)


class PaintedSegmenter:
    """Stands in for a `Segmenter`: finds exactly what is painted, objects with a score of 0.9."""

    classes = CLASSES
    tasks = ("panoptic", "instance", "semantic")

    def __init__(self):
        self.sizes = []

    def __call__(self, image, task=None):
        task = task or "panoptic"
        self.sizes.append(image.shape[:2])
        numbers = image.astype(np.int64) @ (1, 65536, 256)
        masks, categories, scores = [], [], []
        for number in np.unique(numbers[image[..., 0] > 0]):
            mask = numbers == number
            category = int(image[mask][0, 0]) - 1
            if task == "instance" and not CLASSES[category].is_thing:
                continue
            if task == "semantic" and category in categories:
                masks[categories.index(category)] |= mask
                continue
            masks.append(mask)
            categories.append(category)
            scores.append(1.0 if task == "semantic" else 0.9 if CLASSES[category].is_thing else None)
        return result_of(task, masks, categories, scores, size=image.shape[:2])

    def semantic_scores(self, image):
        self.sizes.append(image.shape[:2])
        return np.stack([(image[..., 0] == 1 + index) for index in range(len(CLASSES))]).astype(np.float32)


def same_partition(first, second):
    """Whether two maps divide the picture into the same segments, whatever their numbers."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
