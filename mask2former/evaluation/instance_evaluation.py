"""COCO's average precision, also for datasets whose thing classes are not numbered 0, 1, 2, ... without gaps."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from detectron2.data import Metadata
from detectron2.evaluation import COCOEvaluator

__all__ = ["InstanceSegEvaluator"]


class InstanceSegEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator without its demand that contiguous ids be 0..n-1.

    In a panoptic dataset such as ADE20K the things have some of the ids of all classes. Predicted ids are turned back
    into the dataset's own here; the base class, shown metadata without an id map, has nothing left to translate.
    """

    _metadata: Metadata

    def __init__(self, dataset_name: str, **arguments: Any) -> None:
        super().__init__(dataset_name, **arguments)
        entries = self._metadata.as_dict()
        id_map = entries.pop("thing_dataset_id_to_contiguous_id", None)
        self._dataset_id = None if id_map is None else {contiguous: original for original, contiguous in id_map.items()}
        self._metadata = Metadata(**entries)

    def evaluate(self, img_ids: list[Any] | None = None) -> dict[str, dict[str, float]] | None:
        # pycocotools prints 30 lines per task past the log; their figures are in the results.
        with contextlib.redirect_stdout(io.StringIO()):
            results: dict[str, dict[str, float]] | None = super().evaluate(img_ids)
        return results

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[Any] | None = None) -> None:
        if self._dataset_id is not None:
            for result in (result for prediction in predictions for result in prediction["instances"]):
                category = result["category_id"]
                if category not in self._dataset_id:
                    raise ValueError(
                        f"predicted class {category} of image {result['image_id']!r} is no thing of dataset "
                        f"{self._metadata.name!r}: its things are {sorted(self._dataset_id)}"
                    )
                result["category_id"] = self._dataset_id[category]
        super()._eval_predictions(predictions, img_ids=img_ids)
