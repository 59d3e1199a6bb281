"""The official Cityscapes evaluation (cityscapesScripts), one image at a time, so that all cores can take part.

The scripts judge lists of files with module-wide settings, print, leave a file in the working directory and end the
process at an error. Here their functions for one image run in worker processes, and those for the summary at the end.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.data.reading import check_size, read_size
from mask2former.evaluation.workers import map_with_progress

__all__ = ["InstanceTask", "PixelTask", "judge_instances", "judge_pixels", "official_labels"]


class PixelTask(NamedTuple):
    """One image whose classes are judged."""

    true_file: str  # *_gtFine_labelIds.png; *_gtFine_instanceIds.png lies beside it
    picture: bytes  # PNG of predicted label ids


class InstanceTask(NamedTuple):
    """One image whose instances are judged."""

    true_file: str  # *_gtFine_instanceIds.png
    instances: list[tuple[int, float, dict[str, Any]]]  # label id, score, mask as run lengths


def official_labels() -> ModuleType:
    """The table of Cityscapes labels, `cityscapesscripts.helpers.labels`.

    Raises:
        ImportError: the package is missing.
    """
    return _import("helpers.labels")


def judge_pixels(tasks: Sequence[PixelTask]) -> dict[str, float]:
    """IoU and iIoU of classes, IoU_sup and iIoU_sup of categories, in percent; NaN where nothing of them occurs."""
    script = _import("evaluation.evalPixelLevelSemanticLabeling")
    args = _settings(script)
    confusion, statistics = script.generateMatrix(args), script.generateInstanceStats(args)
    for image_confusion, image_statistics in map_with_progress(_count_pixels, tasks, description="Cityscapes pixels"):
        confusion += image_confusion
        _add(statistics, image_statistics)
    names = {label: official_labels().id2label[label].name for label in args.evalLabels}
    categories = list(official_labels().category2labels)
    scores: dict[str, dict[str, float]] = {
        "IoU": {name: script.getIouScoreForLabel(label, confusion, args) for label, name in names.items()},
        "iIoU": {
            name: script.getInstanceIouScoreForLabel(label, confusion, statistics, args)
            for label, name in names.items()
        },
        "IoU_sup": {name: script.getIouScoreForCategory(name, confusion, args) for name in categories},
        "iIoU_sup": {
            name: script.getInstanceIouScoreForCategory(name, confusion, statistics, args) for name in categories
        },
    }
    return {name: 100 * float(script.getScoreAverage(values, args)) for name, values in scores.items()}


def judge_instances(tasks: Sequence[InstanceTask]) -> dict[str, float]:
    """AP (mean over IoU 0.5..0.95) and AP50 in percent; NaN where nothing is to be found."""
    script = _import("evaluation.evalInstanceLevelSemanticLabeling")
    args = _settings(script)
    script.setInstanceLabels(args)
    matches: dict[str, Any] = {}
    for image_matches in map_with_progress(_match_instances, tasks, description="Cityscapes instances"):
        matches.update(image_matches)
    averages = script.computeAverages(script.evaluateMatches(matches, args), args)
    return {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])}


def _count_pixels(task: PixelTask) -> tuple[NDArray[np.ulonglong], dict[str, Any]]:
    script = _import("evaluation.evalPixelLevelSemanticLabeling")
    args = _settings(script)
    confusion, statistics = script.generateMatrix(args), script.generateInstanceStats(args)
    with tempfile.TemporaryDirectory() as folder, _errors_of(task.true_file):
        predicted_file = Path(folder) / "prediction.png"
        predicted_file.write_bytes(task.picture)
        check_size(f"the prediction for {task.true_file}", read_size(str(predicted_file)), *_size_of(task.true_file))
        script.evaluatePair(str(predicted_file), task.true_file, confusion, statistics, {}, args)
    return confusion, statistics


def _match_instances(task: InstanceTask) -> dict[str, Any]:
    script = _import("evaluation.evalInstanceLevelSemanticLabeling")
    args = _settings(script)
    script.setInstanceLabels(args)
    true_size = _size_of(task.true_file)
    with tempfile.TemporaryDirectory() as folder, _errors_of(task.true_file):
        args.predictionPath = os.path.abspath(folder)
        list_file = Path(folder) / "prediction.txt"
        lines = []
        for number, (label, score, rle) in enumerate(task.instances):
            check_size(f"instance {number} of the prediction for {task.true_file}", rle["size"], *true_size)
            picture = Image.fromarray(coco_mask.decode(rle) * np.uint8(255))
            picture.save(Path(folder) / f"{number}.png", compress_level=1)
            lines.append(f"{number}.png {label} {score!r}\n")
        list_file.write_text("".join(lines))
        instances = _import("evaluation.instances2dict").instances2dict([task.true_file])
        matches: dict[str, Any] = script.matchGtWithPreds([str(list_file)], [task.true_file], instances, args)
    return matches


def _size_of(path: str) -> tuple[tuple[int, int], str]:
    return read_size(path), path


def _add(total: dict[str, Any], part: dict[str, Any]) -> None:
    """Add the counts of one image to nested counts; label lists are the same in both."""
    for key, value in part.items():
        if isinstance(value, dict):
            _add(total[key], value)
        elif isinstance(value, float):
            total[key] += value


def _settings(script: ModuleType) -> Any:
    """The script's settings for one evaluation that only returns its figures."""
    args = copy.copy(script.args)  # type: ignore[attr-defined]
    args.quiet, args.JSONOutput, args.colorized = True, False, False
    return args


@contextlib.contextmanager
def _errors_of(true_file: str) -> Iterator[None]:
    """The scripts print what is wrong and end the process; here it becomes an exception."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            yield
        except SystemExit as stopped:
            raise ValueError(f"cityscapesScripts refuses {true_file}: {printed.getvalue().strip()}") from stopped


def _import(module: str) -> ModuleType:
    if not hasattr(np, "in1d"):
        # NumPy 2.4 dropped the old name of `isin`; cityscapesScripts (up to 2.3 at least) uses it.
        setattr(np, "in1d", np.isin)  # noqa: B010 - NumPy's types rightly lack the name
    try:
        return importlib.import_module(f"cityscapesscripts.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(
            "evaluation on Cityscapes needs the package cityscapesscripts: pip install mask2former[data]"
        ) from error
