"""Pictures of the result files that evaluations write: image, truth and prediction side by side."""

# (H, W) pixels of the picture.

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray

from mask2former.data.datasets.annotation_files import complaints_name
from mask2former.data.drawing import LabelForm, draw_truth
from mask2former.data.masks import decode_segmentations, rgb_to_id
from mask2former.data.reading import read_image, read_panoptic_ids
from mask2former.data.record_lists import load_records
from mask2former.evaluation.result_files import picture_key, read_result_file
from mask2former.visualization import draw_instances, draw_panoptic, draw_semantic, strip

__all__ = ["ResultPictures"]

ResultForm = Literal["instance", "semantic", "panoptic"]
Record = Mapping[str, Any]
Entry = Mapping[str, Any]
_TRUTH: dict[ResultForm, LabelForm] = {
    "instance": "annotations",
    "semantic": "sem_seg_file_name",
    "panoptic": "pan_seg_file_name",
}


class ResultPictures:
    """The results of a file, picture by picture.

    Attributes:
        form: which of the three files it is.
        records: pictures that can be drawn, in the order of the dataset. Of instances these are all of the dataset
            (one without an entry is a picture in which nothing was found), else those with a result.
    """

    def __init__(self, json_file: str, dataset_name: str) -> None:
        """
        Args:
            json_file: `coco_instances_results.json`, `sem_seg_predictions.json`, or panoptic `predictions.json`, whose
                pictures lie in the folder `predictions` beside it.
            dataset_name: the registered dataset that was evaluated.

        Raises:
            FileNotFoundError, ValueError: the file is missing, damaged, or of another dataset.
        """
        records = load_records([dataset_name], config_key="--dataset")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._json_file = json_file
        content = read_result_file(json_file)
        with complaints_name(json_file):
            self.form: ResultForm = _form_of(content, json_file)
            self._key_of = _key_function(self.form, records)
            self._entries: dict[Hashable, list[Entry]] = defaultdict(list)
            for entry in content["annotations"] if self.form == "panoptic" else content:
                self._entries[self._key_of(entry)].append(entry)
            self._contiguous_ids = _contiguous_ids(self._metadata, self.form)
            self._check_fit(records, dataset_name)
        # A picture in which no instance was found has no entry.
        self.records = [
            record for record in records if self.form == "instance" or self._key_of(record) in self._entries
        ]

    def draw(self, record: Record, threshold: float = 0.5) -> NDArray[np.uint8]:
        """Image, truth (if the dataset has it) and prediction.

        Args:
            record: one of `records`.
            threshold: instances with a lower score are left out; other results have no score.

        Returns:
            (h, w, 3) uint8 RGB.
        """
        image = read_image(record["file_name"], "RGB")
        panels = {"image": image}
        if any(key in record for key in _TRUTH.values()):
            panels["truth"] = draw_truth(image, record, self._metadata, form=_TRUTH[self.form])
        draw = {"instance": self._draw_instances, "semantic": self._draw_semantic, "panoptic": self._draw_panoptic}
        panels["prediction"] = draw[self.form](image, record, threshold)
        return strip(list(panels.values()), list(panels))

    def _draw_instances(self, image: NDArray[np.uint8], record: Record, threshold: float) -> NDArray[np.uint8]:
        entries = [entry for entry in self._entries.get(self._key_of(record), ()) if entry["score"] >= threshold]
        masks = self._decode(entries, image, record)
        scores = [entry["score"] for entry in entries]
        return draw_instances(image, masks, self._classes(entries), self._metadata, scores=scores)

    def _draw_semantic(self, image: NDArray[np.uint8], record: Record, _: float) -> NDArray[np.uint8]:
        entries = self._entries[self._key_of(record)]
        labels_HW = np.full(image.shape[:2], -1, dtype=np.int32)
        for category, entry in zip(self._classes(entries), entries, strict=True):
            labels_HW[self._decode([entry], image, record)[0]] = category
        return draw_semantic(image, labels_HW, self._metadata)

    def _draw_panoptic(self, image: NDArray[np.uint8], record: Record, _: float) -> NDArray[np.uint8]:
        entry = self._entries[self._key_of(record)][0]
        ids_HW = rgb_to_id(read_panoptic_ids(os.path.join(os.path.splitext(self._json_file)[0], entry["file_name"])))
        things = self._metadata.get("thing_dataset_id_to_contiguous_id") or {}
        segments = entry["segments_info"]
        info = [
            {"id": segment["id"], "category_id": category, "isthing": segment["category_id"] in things}
            for category, segment in zip(self._classes(segments), segments, strict=True)
        ]
        return draw_panoptic(image, ids_HW, info, self._metadata)

    def _classes(self, entries: Sequence[Entry]) -> list[int]:
        """Contiguous ids."""
        return [self._contiguous_ids[entry["category_id"]] for entry in entries]

    def _decode(self, entries: Sequence[Entry], image: NDArray[np.uint8], record: Record) -> NDArray[np.bool_]:
        try:
            return decode_segmentations([entry["segmentation"] for entry in entries], image.shape[:2])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._json_file}: the result for {record['file_name']} is damaged: {error}") from error

    def _check_fit(self, records: Sequence[Record], dataset_name: str) -> None:
        """Raises ValueError when the file has pictures or categories that are none of the dataset."""
        unknown = list(self._entries.keys() - {self._key_of(record) for record in records})
        if unknown:
            raise ValueError(
                f"{self._json_file} has results for {len(self._entries)} pictures, and {len(unknown)} of them are not "
                f"in data set {dataset_name!r}, for example {unknown[0]!r}: name the data set that was evaluated "
                "(--dataset)"
            )
        for entries in self._entries.values():
            for entry in entries:
                for part in entry["segments_info"] if self.form == "panoptic" else [entry]:
                    if part["category_id"] not in self._contiguous_ids:
                        known = sorted(self._contiguous_ids)
                        raise ValueError(
                            f"{self._json_file}: category {part['category_id']} is none of data set {dataset_name!r}, "
                            + (f"which has {len(known)} from {known[0]} to {known[-1]}" if known else "which has none")
                        )


def _form_of(content: Any, path: str) -> ResultForm:
    if isinstance(content, dict) and any("segments_info" in entry for entry in content.get("annotations", ())):
        return "panoptic"
    if isinstance(content, list) and content and isinstance(content[0], dict):
        if {"image_id", "score"} <= content[0].keys():
            return "instance"
        if "file_name" in content[0]:
            return "semantic"
    raise ValueError(
        f"{path} holds no results: it must be a coco_instances_results.json, a sem_seg_predictions.json, or the "
        "predictions.json of a panoptic evaluation, and not be empty"
    )


def _key_function(form: ResultForm, records: Sequence[Record]) -> Callable[[Mapping[str, Any]], Hashable]:
    """What tells the picture of a record and of a result."""
    if form != "semantic":
        return lambda entry: entry["image_id"]
    key_of = picture_key([record["file_name"] for record in records])
    return lambda entry: key_of(entry["file_name"])


def _contiguous_ids(metadata: Metadata, form: ResultForm) -> dict[int, int]:
    """From ids in result files, which are the dataset's own, to contiguous ones."""
    things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
    if form == "panoptic":
        return {**stuff, **things}
    given, classes = (things, "thing_classes") if form == "instance" else (stuff, "stuff_classes")
    return dict(given) or {index: index for index in range(len(metadata.get(classes) or ()))}
