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
from functools import partial
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.file_io import PathManager
from panopticapi.evaluation import PQStat, pq_compute_single_core
from PIL import Image

from mask2former.data.masks import id_to_rgb
from mask2former.data.reading import check_size, read_size
from mask2former.evaluation.instance_ground_truth import read_ground_truth
from mask2former.evaluation.workers import gather_to_main, map_with_progress
from mask2former.files import write_atomically

__all__ = ["PanopticEvaluator", "panoptic_quality"]

Annotation = Mapping[str, Any]  # an entry of `annotations` in a COCO panoptic file


class PanopticEvaluator(DatasetEvaluator):  # type: ignore[misc]  # Detectron2 has no types
    """PQ, SQ and RQ of `panoptic_seg`, of all classes, things ("_th") and stuff ("_st"), in percent.

    Each result is kept as the bytes of its PNG file.
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
        self.reset()

    def reset(self) -> None:
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Keep the `panoptic_seg` of each output: (H, W) segment ids, 0 = none, and a list of dicts about them."""
        for sample, output in zip(inputs, outputs, strict=True):
            ids_HW, segments_info = output["panoptic_seg"]
            picture = io.BytesIO()
            Image.fromarray(id_to_rgb(ids_HW.cpu().numpy())).save(picture, format="PNG", compress_level=1)
            stem = os.path.splitext(os.path.basename(sample["file_name"]))[0]
            self._predictions.append(
                {
                    "image_id": sample["image_id"],
                    "file_name": f"{stem}.png",
                    "png": picture.getvalue(),
                    "segments_info": [self._to_coco(info, sample["image_id"]) for info in segments_info],
                }
            )

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        Returns:
            "panoptic_seg" -> PQ, SQ, RQ, PQ_th, SQ_th, RQ_th, PQ_st, SQ_st, RQ_st, in percent; NaN for a group none of
            whose classes occurs. None on other ranks than 0.
        """
        predictions = gather_to_main(self._predictions)
        if predictions is None:
            return None
        logger = logging.getLogger(__name__)
        if not predictions:
            logger.warning(f"No image of {self._name!r} was evaluated: there is no PQ")
            return {}
        ground_truth = read_ground_truth(self._json_file, ("annotations", "categories"))
        with contextlib.ExitStack() as stack:
            folder = self._output_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="panoptic"))
            pictures = os.path.join(folder, "predictions")
            annotations = _write(predictions, ground_truth, folder, pictures)
            logger.info(f"Computing PQ of {len(predictions)} images ...")
            return {"panoptic_seg": panoptic_quality(ground_truth, annotations, self._folder, pictures)}

    def _to_coco(self, info: Mapping[str, Any], image_id: Any) -> dict[str, Any]:
        kind = "thing" if info["isthing"] else "stuff class"
        known = self._dataset_id[bool(info["isthing"])]
        if info["category_id"] not in known:
            raise ValueError(
                f"predicted class {info['category_id']} of image {image_id!r} is no {kind} of dataset {self._name!r}: "
                f"choose from {sorted(known)}"
            )
        return {"id": info["id"], "category_id": known[info["category_id"]]}


def panoptic_quality(
    ground_truth: Mapping[str, Any], predictions: Sequence[Annotation], true_folder: str, predicted_folder: str
) -> dict[str, float]:
    """PQ, SQ and RQ in percent, counted on all cores; see `PanopticEvaluator.evaluate`.

    Args:
        ground_truth: content of a COCO panoptic file.
        predictions: its `annotations`, as predicted: one for each annotated image.
        true_folder, predicted_folder: where the pictures lie that annotations name.
    """
    by_image = {prediction["image_id"]: prediction for prediction in predictions}
    absent = [entry["image_id"] for entry in ground_truth["annotations"] if entry["image_id"] not in by_image]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(ground_truth['annotations'])} annotated images have no panoptic prediction, "
            f"for example {absent[0]!r}: evaluate all images of the dataset"
        )
    categories = {category["id"]: category for category in ground_truth["categories"]}
    pairs = [(entry, by_image[entry["image_id"]]) for entry in ground_truth["annotations"]]
    count = partial(_count, categories, true_folder, predicted_folder)
    total = PQStat()
    for part in map_with_progress(count, pairs, description="panoptic quality"):
        total += part
    groups = {"": _average(total, categories, None)}
    groups["_th"], groups["_st"] = (_average(total, categories, is_thing) for is_thing in (True, False))
    names = ("pq", "sq", "rq")
    return {f"{name.upper()}{suffix}": 100 * group[name] for suffix, group in groups.items() for name in names}


def _count(
    categories: dict[int, Any], true_folder: str, predicted_folder: str, pair: tuple[Annotation, Annotation]
) -> PQStat:
    """Matches and misses of one image."""
    true, predicted = pair
    true_file = os.path.join(true_folder, true["file_name"])
    predicted_file = os.path.join(predicted_folder, predicted["file_name"])
    check_size(predicted_file, read_size(predicted_file), read_size(true_file), true_file)
    predicted = {**predicted, "segments_info": [dict(info) for info in predicted["segments_info"]]}  # to be written to
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        return pq_compute_single_core(0, [(true, predicted)], true_folder, predicted_folder, categories)


def _average(total: PQStat, categories: dict[int, Any], is_thing: bool | None) -> dict[str, float]:
    try:
        average = total.pq_average(categories, isthing=is_thing)[0]
    except ZeroDivisionError:  # no class of the group occurs
        return dict.fromkeys(("pq", "sq", "rq"), math.nan)
    return {name: float(value) for name, value in average.items()}


def _write(
    predictions: Sequence[Mapping[str, Any]], ground_truth: Mapping[str, Any], folder: str, pictures: str
) -> list[dict[str, Any]]:
    """Write the results in COCO's panoptic format, and return their `annotations`."""
    name, count = Counter(prediction["file_name"] for prediction in predictions).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} images have the result file {name!r}: their names must differ in more than folders")
    os.makedirs(pictures, exist_ok=True)
    for prediction in predictions:
        with open(os.path.join(pictures, prediction["file_name"]), "wb") as file:
            file.write(prediction["png"])
    keys = ("image_id", "file_name", "segments_info")
    annotations = [{key: prediction[key] for key in keys} for prediction in predictions]
    content = json.dumps({**ground_truth, "annotations": annotations}).encode()
    write_atomically(os.path.join(folder, "predictions.json"), lambda file: file.write(content))
    return annotations
