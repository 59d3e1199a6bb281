"""COCO's average precision, also for datasets whose thing classes are not numbered 0, 1, 2, ... without gaps."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances

from mask2former.evaluation.average_precision import TASKS, AveragePrecision, average_precision
from mask2former.evaluation.instance_ground_truth import InstanceGroundTruth
from mask2former.evaluation.run_lengths import PackedRows, RunLengths, encode_packed, pack_rows
from mask2former.evaluation.workers import BackgroundWork
from mask2former.files import write_atomically

__all__ = ["InstanceSegEvaluator"]

Metrics = dict[str, dict[str, float]]  # task -> metric -> percent


class InstanceSegEvaluator(COCOEvaluator):  # type: ignore[misc]  # Detectron2 has no types
    """AP of boxes, masks and, if asked for, of the boundaries of masks.

    A COCOEvaluator by name, arguments and results, so that code written for Detectron2's takes it. Unlike that one it
    - does not demand that contiguous ids be 0..n-1 (in a panoptic dataset such as ADE20K things have some of all ids),
    - reads the ground truth once, on rank 0, and makes it from panoptic files where a dataset has no other,
    - computes on all cores with faster-coco-eval instead of a compiled part that an installation may lack,
    - gives 0, not NaN, to a model that finds nothing.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        use_fast_impl: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: its metadata have `json_file`, or `panoptic_json` and `panoptic_root`.
            tasks: some of "bbox", "segm" and "boundary"; None: the first two.
            distributed: collect the results of all ranks; all of them must call `evaluate`.
            output_dir: gets `coco_instances_results.json`, results in COCO's format with the dataset's own class ids.
            use_fast_impl: False takes pycocotools; it gives the same figures, later.
        """
        # Not COCOEvaluator's constructor: it reads the whole ground truth, in every process.
        self._tasks = ("bbox", "segm") if tasks is None else tuple(tasks)
        unknown = set(self._tasks) - set(TASKS if use_fast_impl else TASKS[:2])
        if unknown:
            raise ValueError(f"tasks={tasks}: {', '.join(sorted(unknown))} is none of {', '.join(TASKS)}")
        self._distributed = distributed
        self._output_dir = output_dir
        self._use_fast_impl = use_fast_impl
        self._logger = logging.getLogger(__name__)
        self._metadata = MetadataCatalog.get(dataset_name)
        self._ground_truth = InstanceGroundTruth(dataset_name, cache_folder=output_dir)
        id_map: Mapping[int, int] | None = self._metadata.get("thing_dataset_id_to_contiguous_id")
        self._dataset_id = None if id_map is None else {contiguous: original for original, contiguous in id_map.items()}
        self._work = BackgroundWork()

    def reset(self) -> None:
        self._work.reset()

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Keep the `instances` of each output as run lengths, under the `image_id` of its input."""
        for sample, output in zip(inputs, outputs, strict=True):
            found = self._to_coco(output["instances"], sample["image_id"])
            self._work.submit(sample, _with_masks, found, pack_rows(output["instances"].pred_masks))

    def evaluate(self, img_ids: list[Any] | None = None) -> Metrics:
        """
        Args:
            img_ids: judge these images only.

        Returns:
            "bbox", "segm", "boundary" -> AP, AP50, AP75, APs, APm, APl and, for several classes, AP-<class>, in
            percent. Empty on other ranks than 0, and where the ground truth has no annotations (test splits).
        """
        predictions = self._work.gather() if self._distributed else self._work.results()
        if predictions is None:
            return {}
        if not predictions:
            self._logger.warning(f"No image of {self._metadata.name!r} was evaluated: there is no AP")
            return {}
        results = [result for prediction in predictions for result in prediction]
        if not results:
            self._logger.warning(f"The model found no instance in {len(predictions)} images of {self._metadata.name!r}")
        if self._output_dir is not None:
            self._write(results, self._output_dir)
        ground_truth = self._ground_truth.read()
        if "annotations" not in ground_truth:
            self._logger.info(f"{self._metadata.name!r} has no annotations: its results were only written")
            return {}
        metrics: Metrics = {}
        for task in self._tasks:
            self._logger.info(f"Computing AP of {task} from {len(results)} instances in {len(predictions)} images ...")
            use_pycocotools = not self._use_fast_impl
            judged = average_precision(ground_truth, results, task, image_ids=img_ids, use_pycocotools=use_pycocotools)
            metrics[task] = {**judged.overall, **self._by_class(judged, ground_truth)}
        return metrics

    def _to_coco(self, instances: Instances, image_id: Any) -> list[dict[str, Any]]:
        """All of the results but their masks."""
        # Corners to (x, y, width, height)
        boxes = instances.pred_boxes.tensor.clone()
        boxes[:, 2:] -= boxes[:, :2]
        columns = (instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist())
        return [
            {
                "image_id": image_id,
                "category_id": self._to_dataset_id(contiguous, image_id),
                "bbox": box,
                "score": score,
            }
            for contiguous, box, score in zip(*columns, strict=True)
        ]

    def _to_dataset_id(self, contiguous: int, image_id: Any) -> int:
        if self._dataset_id is None:
            return contiguous
        if contiguous not in self._dataset_id:
            raise ValueError(
                f"predicted class {contiguous} of image {image_id!r} is no thing of dataset "
                f"{self._metadata.name!r}: its things are {sorted(self._dataset_id)}"
            )
        return self._dataset_id[contiguous]

    def _by_class(self, judged: AveragePrecision, ground_truth: Mapping[str, Any]) -> dict[str, float]:
        if len(judged.by_class) <= 1:
            return {}
        categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
        names = self._metadata.get("thing_classes", ())
        if len(names) != len(categories):  # in some panoptic datasets the list names stuff too
            names = [category["name"] for category in categories]
        return {f"AP-{name}": value for name, value in zip(names, judged.by_class, strict=True)}

    @staticmethod
    def _write(results: list[dict[str, Any]], folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        content = json.dumps(results).encode()
        write_atomically(os.path.join(folder, "coco_instances_results.json"), lambda file: file.write(content))


def _with_masks(found: list[dict[str, Any]], masks: PackedRows | RunLengths) -> list[dict[str, Any]]:
    """Adds the masks, in a worker process."""
    return [{**entry, "segmentation": rle} for entry, rle in zip(found, encode_packed(masks), strict=True)]
