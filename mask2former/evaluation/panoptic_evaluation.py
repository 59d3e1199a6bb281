"""Panoptic quality (PQ, Kirillov et al., arXiv:1801.00868, Sec. 4), counted by COCO's panopticapi."""

# (H, W) pixels of the result.

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from panopticapi.evaluation import PQStat, pq_compute_single_core
from PIL import Image

from mask2former.data.masks import id_to_rgb
from mask2former.data.reading import check_size, read_size
from mask2former.evaluation.instance_ground_truth import read_ground_truth
from mask2former.evaluation.workers import BackgroundWork
from mask2former.files import write_atomically

__all__ = ["PanopticEvaluator"]

Annotation = Mapping[str, Any]  # an entry of `annotations` in a COCO panoptic file


class PanopticEvaluator(DatasetEvaluator):  # type: ignore[misc]  # Detectron2 has no types
    """PQ, SQ and RQ of `panoptic_seg`, of all classes, things ("_th") and stuff ("_st"), in percent.

    Each result is judged as it comes, in another process, and kept as the bytes of its PNG file.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: its metadata have `panoptic_json`, `panoptic_root` and both maps to contiguous ids.
            output_dir: gets the results in COCO's panoptic format: `predictions.json` and the folder `predictions`.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._output_dir = output_dir
        self._json_file: str = metadata.panoptic_json
        self._folder: str = metadata.panoptic_root
        for key, path in (("panoptic_json", self._json_file), ("panoptic_root", self._folder)):
            if not PathManager.exists(path):
                raise FileNotFoundError(f"dataset {dataset_name!r}: its {key} {path!r} does not exist")
        maps = (metadata.stuff_dataset_id_to_contiguous_id, metadata.thing_dataset_id_to_contiguous_id)
        self._dataset_id = [{contiguous: original for original, contiguous in id_map.items()} for id_map in maps]
        self._work = BackgroundWork()

    def reset(self) -> None:
        self._work.reset()

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Judge the `panoptic_seg` of each output: (H, W) segment ids, 0 = none, and a list of dicts about them."""
        for sample, output in zip(inputs, outputs, strict=True):
            ids_HW, segments_info = output["panoptic_seg"]
            image_id = sample["image_id"]
            stem = os.path.splitext(os.path.basename(sample["file_name"]))[0]
            found = {
                "image_id": image_id,
                "file_name": f"{stem}.png",
                "segments_info": [self._to_coco(info, image_id) for info in segments_info],
            }
            true = self._annotations.get(image_id)
            self._work.submit(sample, _judge, self._categories, self._folder, true, found, ids_HW.cpu().numpy())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        Returns:
            "panoptic_seg" -> PQ, SQ, RQ, PQ_th, SQ_th, RQ_th, PQ_st, SQ_st, RQ_st, in percent; NaN for a group none of
            whose classes occurs. None on other ranks than 0.
        """
        judged = self._work.gather()
        if judged is None:
            return None
        if not judged:
            logging.getLogger(__name__).warning(f"No image of {self._name!r} was evaluated: there is no PQ")
            return {}
        name, count = Counter(image.found["file_name"] for image in judged).most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"{count} images have the result file {name!r}: their names must differ in more than folders"
            )
        if self._output_dir is not None:
            _write(judged, self._ground_truth, self._output_dir)
        counts = {image.found["image_id"]: image.matches for image in judged}
        absent = [image_id for image_id in self._annotations if image_id not in counts]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(self._annotations)} annotated images have no panoptic prediction, for example "
                f"{absent[0]!r}: evaluate all images of the dataset"
            )
        # In the order of the annotations, as the official script adds.
        return {"panoptic_seg": _quality([counts[image_id] for image_id in self._annotations], self._categories)}

    @cached_property
    def _ground_truth(self) -> dict[str, Any]:
        return read_ground_truth(self._json_file, ("annotations", "categories"))

    @cached_property
    def _annotations(self) -> dict[Any, Annotation]:
        return {entry["image_id"]: entry for entry in self._ground_truth["annotations"]}

    @cached_property
    def _categories(self) -> dict[int, Any]:
        return {category["id"]: category for category in self._ground_truth["categories"]}

    def _to_coco(self, info: Mapping[str, Any], image_id: Any) -> dict[str, Any]:
        kind = "thing" if info["isthing"] else "stuff class"
        known = self._dataset_id[bool(info["isthing"])]
        if info["category_id"] not in known:
            raise ValueError(
                f"predicted class {info['category_id']} of image {image_id!r} is no {kind} of dataset {self._name!r}: "
                f"choose from {sorted(known)}"
            )
        return {"id": info["id"], "category_id": known[info["category_id"]]}


class _JudgedImage(NamedTuple):
    found: Annotation  # as predicted
    png: bytes  # its picture
    matches: PQStat | None  # and misses; None where there is no ground truth


def _judge(
    categories: dict[int, Any],
    true_folder: str,
    true: Annotation | None,
    found: Annotation,
    ids_HW: NDArray[np.integer[Any]],
) -> _JudgedImage:
    """One image, in a worker process."""
    picture = io.BytesIO()
    Image.fromarray(id_to_rgb(ids_HW)).save(picture, format="PNG", compress_level=1)
    if true is None:
        return _JudgedImage(found, picture.getvalue(), None)
    true_file = os.path.join(true_folder, true["file_name"])
    check_size(f"the prediction for image {found['image_id']!r}", ids_HW.shape, read_size(true_file), true_file)
    to_be_changed = {**found, "segments_info": [dict(info) for info in found["segments_info"]]}
    with tempfile.TemporaryDirectory(prefix="panoptic") as folder:  # panopticapi reads files
        with open(os.path.join(folder, found["file_name"]), "wb") as file:
            file.write(picture.getvalue())
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            matches = pq_compute_single_core(0, [(true, to_be_changed)], true_folder, folder, categories)
    return _JudgedImage(found, picture.getvalue(), matches)


def _quality(counts: Sequence[PQStat], categories: dict[int, Any]) -> dict[str, float]:
    """PQ, SQ and RQ in percent, see `PanopticEvaluator.evaluate`."""
    total = PQStat()
    for count in counts:
        total += count
    groups = {"": _average(total, categories, None)}
    groups["_th"], groups["_st"] = (_average(total, categories, is_thing) for is_thing in (True, False))
    names = ("pq", "sq", "rq")
    return {f"{name.upper()}{suffix}": 100 * group[name] for suffix, group in groups.items() for name in names}


def _average(total: PQStat, categories: dict[int, Any], is_thing: bool | None) -> dict[str, float]:
    try:
        average = total.pq_average(categories, isthing=is_thing)[0]
    except ZeroDivisionError:  # no class of the group occurs
        return dict.fromkeys(("pq", "sq", "rq"), math.nan)
    return {name: float(value) for name, value in average.items()}


def _write(judged: Sequence[_JudgedImage], ground_truth: Mapping[str, Any], folder: str) -> None:
    """Write the results in COCO's panoptic format."""
    pictures = os.path.join(folder, "predictions")
    os.makedirs(pictures, exist_ok=True)
    for image in judged:
        with open(os.path.join(pictures, image.found["file_name"]), "wb") as file:
            file.write(image.png)
    content = json.dumps({**ground_truth, "annotations": [image.found for image in judged]}).encode()
    write_atomically(os.path.join(folder, "predictions.json"), lambda file: file.write(content))
