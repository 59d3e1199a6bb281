"""Video instance segmentation as YouTube-VIS measures it (arXiv:1905.04804, Sec. 4.2)."""
# N tracks of a video, T frames of (H, W) pixels.

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.file_io import PathManager

from mask2former.data.datasets.annotation_files import read_json, require_end_of_json
from mask2former.evaluation.run_lengths import PackedRows, RunLengths, encode_packed, pack_rows
from mask2former.evaluation.track_precision import track_average_precision
from mask2former.evaluation.workers import BackgroundWork
from mask2former.files import write_atomically

__all__ = ["YTVISEvaluator"]

RESULT_FILE = "results.json"
SUBMISSION_FILE = "submission.zip"


class YTVISEvaluator(DatasetEvaluator):  # type: ignore[misc]  # Detectron2 has no types
    """AP and AR of the objects of videos, and the file that the public server takes.

    Where the annotation file lists no objects, as those of the public validation and test videos, the results are
    written and nothing is measured.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, *, distributed: bool = True) -> None:
        """
        Args:
            dataset_name: its metadata have `json_file` and `thing_dataset_id_to_contiguous_id`.
            output_dir: gets `results.json` and, for the server, the same in `submission.zip`.
            distributed: collect the results of all ranks; all of them must call `evaluate`.
        """
        self._metadata = MetadataCatalog.get(dataset_name)
        self._json_file: str = self._metadata.json_file
        if not PathManager.isfile(self._json_file):
            raise FileNotFoundError(f"annotation file {self._json_file!r} of dataset {dataset_name!r} does not exist")
        require_end_of_json(self._json_file)
        id_map: Mapping[int, int] = self._metadata.thing_dataset_id_to_contiguous_id
        self._dataset_id = {contiguous: original for original, contiguous in id_map.items()}
        self._output_dir = output_dir
        self._distributed = distributed
        self._logger = logging.getLogger(__name__)
        self._work = BackgroundWork()

    def reset(self) -> None:
        self._work.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Mapping[str, Any] | Sequence[Any]) -> None:
        """Have the tracks of a video turned into run lengths by another process.

        Args:
            inputs: one video, with its `video_id`.
            outputs: `pred_scores`, `pred_labels` (contiguous) and `pred_masks`, N masks (T, H, W) of bool.
        """
        found = outputs if isinstance(outputs, Mapping) else outputs[0]
        if len(inputs) != 1:
            raise ValueError(f"videos are evaluated one at a time, got {len(inputs)}")
        video_id = inputs[0]["video_id"]
        unknown = set(found["pred_labels"]) - set(self._dataset_id)
        if unknown:
            raise ValueError(
                f"predicted class {min(unknown)} of video {video_id!r} is none of dataset {self._metadata.name!r}, "
                f"which has {len(self._dataset_id)}"
            )
        tracks = [
            {"video_id": video_id, "score": float(score), "category_id": self._dataset_id[label]}
            for score, label in zip(found["pred_scores"], found["pred_labels"], strict=True)
        ]
        masks = [pack_rows(torch.as_tensor(masks_THW)) for masks_THW in found["pred_masks"]]
        self._work.submit(inputs[0], _with_run_lengths, tracks, masks)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            "segm" -> AP, AP50, AP75, APs, APm, APl, AR1, AR10 and, for several classes, AP-<class>, in percent. Empty
            on other ranks than 0, and where there are no annotations.
        """
        videos = self._work.gather() if self._distributed else self._work.results()
        if videos is None:
            return {}
        if not videos:
            self._logger.warning(f"No video of {self._metadata.name!r} was evaluated: there is no AP")
            return {}
        results = [track for tracks in videos for track in tracks]
        if self._output_dir is not None:
            write_results(results, self._output_dir)
        ground_truth = read_json(self._json_file)
        if not ground_truth.get("annotations"):
            where = "" if self._output_dir is None else f": {os.path.join(self._output_dir, SUBMISSION_FILE)} is"
            self._logger.info(f"{self._json_file} lists no objects, nothing is measured{where} for the public server")
            return {}
        precision = track_average_precision(ground_truth, results)
        categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
        by_class = {
            f"AP-{category['name']}": value for category, value in zip(categories, precision.by_class, strict=True)
        }
        return {"segm": {**precision.overall, **(by_class if len(by_class) > 1 else {})}}


def _with_run_lengths(tracks: list[dict[str, Any]], masks: list[PackedRows | RunLengths]) -> list[dict[str, Any]]:
    return [
        {**track, "segmentations": encode_packed(masks_THW)} for track, masks_THW in zip(tracks, masks, strict=True)
    ]


def write_results(results: Iterable[Mapping[str, Any]], folder: str) -> None:
    """`results.json`, and `submission.zip`, which holds that file alone."""
    os.makedirs(folder, exist_ok=True)
    content = json.dumps(list(results)).encode()
    write_atomically(os.path.join(folder, RESULT_FILE), lambda file: file.write(content))

    def write_archive(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(RESULT_FILE, content)

    write_atomically(os.path.join(folder, SUBMISSION_FILE), write_archive)
