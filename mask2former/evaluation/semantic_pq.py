"""Panoptic quality (arXiv:1801.00868) of semantic segmentation: every class in a picture counts as one segment.

This is how MaskFormer (arXiv:2107.06278, Sec. 4.2) tells how well regions are recognized, beside their pixels.
"""
# K classes, (H, W) pixels of a picture.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from mask2former.data.datasets.annotation_files import complaints_name
from mask2former.data.masks import decode_segmentations
from mask2former.data.record_lists import load_records
from mask2former.evaluation.result_files import picture_key, read_result_list
from mask2former.evaluation.semantic_evaluation import read_truth
from mask2former.evaluation.workers import map_with_progress

__all__ = ["ClassCounts", "SemanticPQ", "count_segments", "evaluate_semantic_pq", "summarize"]

Labels = NDArray[np.integer[Any]]
Counts = NDArray[Any]


class ClassCounts(NamedTuple):
    """What is counted, (K,) each; counts of several pictures are added."""

    iou: Counts  # summed over true positives
    true_positives: Counts  # segments, i.e. pictures
    false_positives: Counts
    false_negatives: Counts
    hit: Counts  # pixels
    true: Counts  # pixels of the ground truth
    predicted: Counts  # pixels predicted where there is ground truth

    def plus(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class SemanticPQ(NamedTuple):
    """Means over the classes that occur in ground truth or prediction, in [0, 1]; NaN if none does."""

    pq: float
    sq: float
    rq: float
    num_classes: int
    mean_iou: float

    def table(self) -> str:
        """As published. All classes are stuff here: both lines say the same."""
        numbers = f"{100 * self.pq:5.1f}  {100 * self.sq:5.1f}  {100 * self.rq:5.1f} {self.num_classes:5d}"
        lines = [
            f"{'':10s}| {'PQ':>5s}  {'SQ':>5s}  {'RQ':>5s} {'N':>5s}",
            "-" * 38,
            *(f"{name:10s}| {numbers}" for name in ("All", "Stuff")),
            f"mIoU: {self.mean_iou:.6f}",
        ]
        return "\n".join(lines)


class _Classes(NamedTuple):
    """What a worker must know about the dataset."""

    dataset_name: str
    num_classes: int
    ignore_label: int | None


class _Picture(NamedTuple):
    file_name: str
    label_file: str
    segments: list[tuple[int, Any]]  # (class, run lengths)


def evaluate_semantic_pq(dataset_name: str, json_file: str) -> SemanticPQ:
    """Judge the result file of a semantic evaluation, on all cores.

    Args:
        dataset_name: registered, with semantic labels.
        json_file: `sem_seg_predictions.json`, a list with one dict for each class in each picture: `file_name` (its
            stem tells the picture), `category_id` (in the dataset's own ids) and `segmentation` (run lengths).

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged or does not fit the dataset; the message names it.
    """
    records = load_records([dataset_name], config_key="--dataset-name")
    metadata = MetadataCatalog.get(dataset_name)
    class_names = metadata.get("stuff_classes")
    if not class_names or any("sem_seg_file_name" not in record for record in records):
        raise ValueError(f"--dataset-name: data set {dataset_name!r} has no semantic labels to compare with")
    classes = _Classes(dataset_name, len(class_names), metadata.get("ignore_label"))
    class_of = metadata.get("stuff_dataset_id_to_contiguous_id") or {index: index for index in range(len(class_names))}
    pictures = _with_segments(records, json_file, class_of)
    counts = map_with_progress(partial(_judge, classes), pictures, description="panoptic quality")
    return summarize(reduce(ClassCounts.plus, counts))


def count_segments(predicted_HW: Labels, true_HW: Labels, num_classes: int) -> ClassCounts:
    """Compare the classes of one picture by the rules of panoptic quality.

    A class is found when its areas overlap by more than half of their union, of which predicted pixels in the void are
    no part. A predicted class that is not found counts as false unless more than half of it lies in the void.

    Args:
        predicted_HW: classes, num_classes where nothing is predicted.
        true_HW: classes, num_classes in the void.
    """
    size = num_classes + 1
    pairs_HW = true_HW.astype(np.int64) * size + predicted_HW
    pixels = np.bincount(pairs_HW.ravel(), minlength=size * size).reshape(size, size)
    hit, in_void = pixels.diagonal()[:-1], pixels[-1, :-1]
    true, predicted = pixels[:-1].sum(axis=1), pixels[:, :-1].sum(axis=0)
    union = true + predicted - hit - in_void
    iou = hit / np.maximum(union, 1)
    is_found = iou > 0.5
    return ClassCounts(
        iou=np.where(is_found, iou, 0.0),
        true_positives=is_found.astype(np.int64),
        false_positives=((predicted > 0) & ~is_found & (2 * in_void <= predicted)).astype(np.int64),
        false_negatives=((true > 0) & ~is_found).astype(np.int64),
        hit=hit,
        true=true,
        predicted=predicted - in_void,
    )


def summarize(counts: ClassCounts) -> SemanticPQ:
    """Figures from the counts of all pictures; mIoU is defined as in the semantic evaluation."""
    found = counts.true_positives
    effort = found + 0.5 * counts.false_positives + 0.5 * counts.false_negatives
    occurs, has_pixels = effort > 0, counts.true + counts.predicted > 0
    with np.errstate(invalid="ignore"):
        means = [
            np.divide(part, whole, out=np.zeros(len(effort)), where=whole > 0).sum() / np.float64(occurs.sum())
            for part, whole in ((counts.iou, effort), (counts.iou, found), (found, effort))
        ]
        union = counts.true + counts.predicted - counts.hit
        mean_iou = (counts.hit / np.maximum(union, 1)).sum() / np.float64(has_pixels.sum())
    pq, sq, rq = (float(mean) for mean in means)
    return SemanticPQ(pq, sq, rq, int(occurs.sum()), float(mean_iou))


def _with_segments(records: Sequence[Mapping[str, Any]], json_file: str, class_of: Mapping[int, int]) -> list[_Picture]:
    """Every picture of the dataset with its predicted segments."""
    key_of = picture_key([record["file_name"] for record in records])
    pictures = {
        key_of(record["file_name"]): _Picture(record["file_name"], record["sem_seg_file_name"], [])
        for record in records
    }
    with complaints_name(json_file):
        for entry in read_result_list(json_file):
            file_name, category, segmentation = entry["file_name"], entry["category_id"], entry["segmentation"]
            picture = pictures.get(key_of(file_name))
            if picture is None:
                raise ValueError(f"{json_file} has a prediction for {file_name}, which is no picture of the dataset")
            if category not in class_of:
                raise ValueError(
                    f"{json_file}: category {category} of {file_name} is none of the dataset, which has "
                    f"{len(class_of)} between {min(class_of)} and {max(class_of)}"
                )
            picture.segments.append((class_of[category], segmentation))
    missing = [picture.file_name for picture in pictures.values() if not picture.segments]
    if missing:
        raise ValueError(
            f"{json_file} has no prediction for {len(missing)} of {len(pictures)} pictures of the dataset; the first "
            f"is {missing[0]}"
        )
    return list(pictures.values())


def _judge(classes: _Classes, picture: _Picture) -> ClassCounts:
    """One picture, in a worker process."""
    true_HW = read_truth(picture.label_file, **classes._asdict())
    predicted_HW = np.full(true_HW.shape, classes.num_classes, dtype=np.int32)
    for category, segmentation in picture.segments:
        try:
            (mask_HW,) = decode_segmentations([segmentation], true_HW.shape)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the prediction for {picture.file_name} cannot be used: {error}") from error
        if (predicted_HW[mask_HW] != classes.num_classes).any():
            raise ValueError(f"the prediction for {picture.file_name} has pixels of two segments")
        predicted_HW[mask_HW] = category
    return count_segments(predicted_HW, true_HW, classes.num_classes)
