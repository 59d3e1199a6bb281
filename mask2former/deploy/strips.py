"""Image | truth | prediction: pictures that show what a model makes of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata
from numpy.typing import NDArray

from mask2former.data.masks import decode_segmentations, rgb_to_id
from mask2former.data.reading import read_class_map, read_image, read_panoptic_ids
from mask2former.deploy.pictures import write_picture
from mask2former.deploy.predictor import Predictor
from mask2former.visualization import draw_instances, draw_panoptic, draw_prediction, draw_semantic, strip

__all__ = ["draw_truth", "evenly_spaced", "write_strips"]


def write_strips(predictor: Predictor, records: Iterable[dict[str, Any]], folder: str | Path) -> Iterator[Path]:
    """Writes one strip for each record, under the name of its picture, and yields the files.

    Args:
        predictor: knows the dataset's classes.
        records: in Detectron2's format, with their ground truth.
        folder: made if needed; strips of the same name are replaced.
    """
    for record in records:
        image = read_image(record["file_name"], "RGB")
        truth = draw_truth(image, record, predictor.metadata)
        prediction = draw_prediction(image, predictor(image), predictor.metadata)
        path = Path(folder) / f"{Path(record['file_name']).stem}.png"
        write_picture(path, strip([image, truth, prediction], ["image", "truth", "prediction"]))
        yield path


def draw_truth(image: NDArray[np.uint8], record: dict[str, Any], metadata: Metadata) -> NDArray[np.uint8]:
    """Draws the ground truth of a record: panoptic if it has that, else instances, else semantic classes.

    Args:
        image: (H, W, 3) uint8 RGB, the picture of the record.
        record: in Detectron2's format; its label pictures are read.
        metadata: of the record's dataset.

    Raises:
        ValueError: the record has no ground truth.
    """
    if "pan_seg_file_name" in record:
        panoptic_map = rgb_to_id(read_panoptic_ids(record["pan_seg_file_name"]))
        return draw_panoptic(image, panoptic_map, record["segments_info"], metadata)
    if "annotations" in record:
        annotations = [entry for entry in record["annotations"] if not entry.get("iscrowd", 0)]
        size = (image.shape[0], image.shape[1])
        masks = decode_segmentations([entry["segmentation"] for entry in annotations], size)
        return draw_instances(image, masks, [entry["category_id"] for entry in annotations], metadata)
    if "sem_seg_file_name" in record:
        return draw_semantic(image, read_class_map(record["sem_seg_file_name"]), metadata)
    raise ValueError(f"{record['file_name']} has no ground truth to draw (keys: {', '.join(sorted(record))})")


def evenly_spaced(dataset_name: str, count: int) -> list[dict[str, Any]]:
    """`count` records spread over a registered dataset, or all of them if it has fewer."""
    records: list[dict[str, Any]] = DatasetCatalog.get(dataset_name)
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[index] for index in chosen]
