"""Cityscapes' own metrics for semantic and instance segmentation, on any number of machines, with GPUs or without.

Results travel to rank 0 through the process group, as PNG bytes and run lengths; no common file system is needed.
"""

# (H, W) pixels of the result.

from __future__ import annotations

import glob
import io
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from numpy.typing import NDArray
from PIL import Image

from mask2former.evaluation.cityscapes_scripts import (
    InstanceTask,
    PixelTask,
    judge_instances,
    judge_pixels,
    official_labels,
)
from mask2former.evaluation.run_lengths import PackedRows, RunLengths, encode_packed, pack_rows
from mask2former.evaluation.semantic_evaluation import label_map
from mask2former.evaluation.workers import BackgroundWork

__all__ = ["CityscapesInstanceEvaluator", "CityscapesSemanticEvaluator"]


class _CityscapesEvaluator(DatasetEvaluator, ABC):  # type: ignore[misc]  # Detectron2 has no types
    """Keeps a small form of each result, under the name that it shares with its label files."""

    _label_suffix: ClassVar[str]

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: `gt_dir` of its metadata is a folder of label files, one folder for each city.
        """
        self._name = dataset_name
        metadata = MetadataCatalog.get(dataset_name)
        self._labels = official_labels()
        pattern = os.path.join(glob.escape(metadata.gt_dir), "*", f"*{self._label_suffix}")
        self._true_files = {_image_name(path): path for path in sorted(glob.glob(pattern))}
        if not self._true_files:
            raise FileNotFoundError(f"dataset {dataset_name!r} has no label files {pattern}")
        self._work = BackgroundWork()

    def reset(self) -> None:
        self._work.reset()

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            name = _image_name(sample["file_name"])
            if name not in self._true_files:
                raise ValueError(
                    f"{sample['file_name']} has no label file {name}{self._label_suffix} in {self._name!r}"
                )
            self._work.submit(sample, _named, name, *self._keep(output, sample["file_name"]))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        Returns:
            The figures in percent under the name of the task. None on other ranks than 0.
        """
        gathered = self._work.gather()
        if gathered is None:
            return None
        logger = logging.getLogger(__name__)
        if not gathered:
            logger.warning(f"No image of {self._name!r} was evaluated: there are no Cityscapes figures")
            return {}
        predictions = dict(gathered)
        absent = sorted(set(self._true_files) - set(predictions))
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(self._true_files)} labeled images of {self._name!r} have no prediction, for "
                f"example {absent[0]}: evaluate all images of the dataset"
            )
        logger.info(f"Computing Cityscapes' figures of {len(predictions)} images ...")
        return self._judge([(path, predictions[name]) for name, path in self._true_files.items()])

    @abstractmethod
    def _keep(self, output: Mapping[str, Any], file_name: str) -> tuple[Any, ...]:
        """A function of the top level and its arguments: what it returns is what `_judge` needs of this output."""

    @abstractmethod
    def _judge(self, pairs: list[tuple[str, Any]]) -> dict[str, dict[str, float]]:
        """The figures of pairs of a label file and what was kept."""


class CityscapesSemanticEvaluator(_CityscapesEvaluator):
    """sem_seg: IoU and iIoU, of classes and (_sup) of categories."""

    _label_suffix = "_gtFine_labelIds.png"

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        judged = {label.trainId: label.id for label in self._labels.labels if not label.ignoreInEval}
        self._label_ids = np.array([judged[train_id] for train_id in sorted(judged)], dtype=np.uint8)

    def _keep(self, output: Mapping[str, Any], file_name: str) -> tuple[Any, ...]:
        labels_HW = label_map(output["sem_seg"], len(self._label_ids), file_name)
        return _to_png, self._label_ids, labels_HW.cpu().numpy()

    def _judge(self, pairs: list[tuple[str, bytes]]) -> dict[str, dict[str, float]]:
        return {"sem_seg": judge_pixels([PixelTask(*pair) for pair in pairs])}


class CityscapesInstanceEvaluator(_CityscapesEvaluator):
    """segm: AP and AP50."""

    _label_suffix = "_gtFine_instanceIds.png"

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        self._class_names: list[str] = MetadataCatalog.get(dataset_name).thing_classes

    def _keep(self, output: Mapping[str, Any], file_name: str) -> tuple[Any, ...]:
        instances = output["instances"]
        classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
        unknown = next((index for index in classes if not 0 <= index < len(self._class_names)), None)
        if unknown is not None:
            raise ValueError(f"{file_name}: predicted class {unknown}, {self._name!r} has {len(self._class_names)}")
        label_ids = [self._labels.name2label[self._class_names[index]].id for index in classes]
        return _to_instances, label_ids, scores, pack_rows(instances.pred_masks)

    def _judge(self, pairs: list[tuple[str, Any]]) -> dict[str, dict[str, float]]:
        return {"segm": judge_instances([InstanceTask(*pair) for pair in pairs])}


def _named(name: str, function: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    return name, function(*arguments)


def _to_png(label_ids: NDArray[np.uint8], labels_HW: NDArray[np.integer[Any]]) -> bytes:
    picture = io.BytesIO()
    Image.fromarray(label_ids[labels_HW]).save(picture, format="PNG", compress_level=1)
    return picture.getvalue()


def _to_instances(
    label_ids: list[int], scores: list[float], masks: PackedRows | RunLengths
) -> list[tuple[int, float, dict[str, Any]]]:
    return list(zip(label_ids, scores, encode_packed(masks), strict=True))


def _image_name(path: str) -> str:
    """City, sequence and frame, which the picture and its label files share: aachen_000000_000019."""
    return "_".join(os.path.basename(path).split("_")[:3])
