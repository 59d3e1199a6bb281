"""Semantic segmentation: intersection over union and accuracy from one confusion matrix."""

# K classes, (H, W) pixels of the result.

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from numpy.typing import NDArray
from torch import Tensor

from mask2former.data.reading import check_size, read_class_map
from mask2former.evaluation.run_lengths import encode_label_map
from mask2former.evaluation.workers import BackgroundWork
from mask2former.files import write_atomically

__all__ = ["SemanticEvaluator", "label_map", "read_truth", "semantic_metrics"]


class SemanticEvaluator(DatasetEvaluator):  # type: ignore[misc]  # Detectron2 has no types
    """mIoU and its relatives of `sem_seg`, and the results as run lengths.

    Each result is counted and encoded as it comes, in another process; no map is kept.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: its metadata have `stuff_classes` and `ignore_label`; its records name label files of 8 or 16
                bits. `stuff_dataset_id_to_contiguous_id`, if there is one, gives the class ids in the result file.
            output_dir: gets `sem_seg_predictions.json`.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._output_dir = output_dir
        self._label_files = {
            record["file_name"]: record.get("sem_seg_file_name") for record in DatasetCatalog.get(dataset_name)
        }
        if None in self._label_files.values():
            raise ValueError(
                f"dataset {dataset_name!r} has pictures without a semantic label file (`sem_seg_file_name`): "
                "switch off MODEL.MASK_FORMER.TEST.SEMANTIC_ON"
            )
        self._class_names: list[str] = metadata.stuff_classes
        id_map: Mapping[int, int] | None = metadata.get("stuff_dataset_id_to_contiguous_id")
        self._dataset = _Dataset(
            name=dataset_name,
            num_classes=len(self._class_names),
            ignore_label=metadata.get("ignore_label"),
            dataset_id=None if id_map is None else {contiguous: original for original, contiguous in id_map.items()},
            has_entries=output_dir is not None,
        )
        self._work = BackgroundWork()

    def reset(self) -> None:
        self._work.reset()

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Count the `sem_seg` of each output: (K, H, W) scores, or (H, W) labels."""
        for sample, output in zip(inputs, outputs, strict=True):
            file_name = sample["file_name"]
            labels_HW = label_map(output["sem_seg"], len(self._class_names), file_name).cpu().numpy()
            self._work.submit(sample, _judge, self._dataset, file_name, self._label_files[file_name], labels_HW)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        Returns:
            "sem_seg" -> see `semantic_metrics`. None on other ranks than 0.
        """
        judged = self._work.gather()
        if judged is None:
            return None
        if not judged:
            logging.getLogger(__name__).warning(f"No image of {self._name!r} was evaluated: there is no mIoU")
            return {}
        if self._output_dir is not None:
            os.makedirs(self._output_dir, exist_ok=True)
            content = json.dumps([entry for image in judged for entry in image.entries]).encode()
            path = os.path.join(self._output_dir, "sem_seg_predictions.json")
            write_atomically(path, lambda file: file.write(content))
        size = len(self._class_names) + 1
        confusion = np.zeros(size * size, dtype=np.int64)
        for image in judged:
            confusion[image.pairs] += image.counts
        return {"sem_seg": semantic_metrics(confusion.reshape(size, size), self._class_names)}


class _Dataset(NamedTuple):
    """What a worker must know about the dataset."""

    name: str
    num_classes: int
    ignore_label: int | None
    dataset_id: Mapping[int, int] | None  # contiguous id -> the dataset's own; None: the same
    has_entries: bool  # results are to be written


class _JudgedImage(NamedTuple):
    pairs: NDArray[np.int64]  # (K + 1) * predicted + true class, of those that occur
    counts: NDArray[np.int64]  # their pixels
    entries: list[dict[str, Any]]  # the labels in COCO's stuff format, one entry for each class that occurs


def _judge(dataset: _Dataset, file_name: str, label_file: str, labels_HW: NDArray[np.integer[Any]]) -> _JudgedImage:
    """One picture, in a worker process."""
    truth_HW = read_truth(
        label_file, num_classes=dataset.num_classes, ignore_label=dataset.ignore_label, dataset_name=dataset.name
    )
    check_size(label_file, truth_HW.shape, labels_HW.shape, f"the prediction for {file_name}")
    size = dataset.num_classes + 1
    counts = np.bincount((labels_HW.astype(np.int64) * size + truth_HW).ravel(), minlength=size * size)
    pairs = np.flatnonzero(counts)
    return _JudgedImage(pairs, counts[pairs], _encode(dataset, file_name, labels_HW) if dataset.has_entries else [])


def _encode(dataset: _Dataset, file_name: str, labels_HW: NDArray[np.integer[Any]]) -> list[dict[str, Any]]:
    entries = []
    for label, rle in encode_label_map(labels_HW).items():
        if dataset.dataset_id is not None and label not in dataset.dataset_id:
            raise ValueError(
                f"predicted class {label} of {file_name} has no id in dataset {dataset.name!r} "
                "(stuff_dataset_id_to_contiguous_id of its metadata)"
            )
        category = label if dataset.dataset_id is None else dataset.dataset_id[label]
        entries.append({"file_name": file_name, "category_id": category, "segmentation": rle})
    return entries


def read_truth(path: str, *, num_classes: int, ignore_label: int | None, dataset_name: str) -> NDArray[Any]:
    """A label picture of 8 or 16 bits: (H, W) integers, num_classes where a pixel is to be ignored.

    Raises:
        ValueError: the picture cannot be read, or has labels that are neither of a class nor to be ignored.
    """
    truth_HW = read_class_map(path)
    ignored_HW = truth_HW == ignore_label
    unknown_HW = (truth_HW >= num_classes) & ~ignored_HW
    if unknown_HW.any():
        raise ValueError(
            f"{path} has the labels {np.unique(truth_HW[unknown_HW]).tolist()}: dataset {dataset_name!r} has the "
            f"classes 0..{num_classes - 1} and ignores {ignore_label}"
        )
    ignored = np.array(num_classes, dtype=np.result_type(truth_HW.dtype, np.min_scalar_type(num_classes)))
    return np.where(ignored_HW, ignored, truth_HW)


def label_map(prediction: Tensor, num_classes: int, file_name: str) -> Tensor:
    """Labels (H, W) in the smallest integers that hold them, where the prediction is.

    Args:
        prediction: (K, H, W) scores of any scale, or (H, W) labels.
        num_classes: K of the dataset.
        file_name: the picture, for messages.
    """
    dtype = torch.uint8 if num_classes <= 256 else torch.int16
    if prediction.dim() == 2 and not prediction.is_floating_point():
        low, high = (int(value) for value in prediction.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"{file_name}: predicted labels {low}..{high}, the dataset has {num_classes} classes")
        return prediction.to(dtype)
    if prediction.dim() != 3 or prediction.shape[0] != num_classes:
        raise ValueError(
            f"{file_name}: the semantic prediction must be ({num_classes}, H, W) scores or (H, W) integer labels, got "
            f"{tuple(prediction.shape)} {prediction.dtype}; does MODEL.SEM_SEG_HEAD.NUM_CLASSES fit the dataset?"
        )
    return prediction.argmax(dim=0).to(dtype)


def semantic_metrics(confusion: NDArray[np.int64], class_names: list[str]) -> dict[str, float]:
    """Figures in percent from pixel counts.

    Args:
        confusion: (K + 1, K + 1), predicted class by true class, where the last true class is "ignored".
        class_names: K names.

    Returns:
        mIoU, fwIoU (weighted by frequency), IoU-<class>, mACC, pACC, ACC-<class>; NaN for a class that does not occur.
    """
    counts = confusion[:-1, :-1].astype(np.float64)
    hit, true, predicted = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    occurs = true > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.where(occurs, hit / (true + predicted - hit), np.nan)
        accuracy = np.where(occurs, hit / true, np.nan)
        # As in Detectron2 0.5, from which published figures come: classes that occur only in predictions count in the
        # denominator of mIoU, not in that of mACC. Later versions leave them out.
        mean_iou = iou[occurs].sum() / np.count_nonzero(true + predicted)
        weighted_iou = (iou * true)[occurs].sum() / true.sum()
        mean_accuracy = accuracy[occurs].sum() / np.count_nonzero(occurs)
        pixel_accuracy = hit.sum() / true.sum()
    figures = {
        "mIoU": mean_iou,
        "fwIoU": weighted_iou,
        **{f"IoU-{name}": value for name, value in zip(class_names, iou, strict=True)},
        "mACC": mean_accuracy,
        "pACC": pixel_accuracy,
        **{f"ACC-{name}": value for name, value in zip(class_names, accuracy, strict=True)},
    }
    return {name: float(100 * value) for name, value in figures.items()}
