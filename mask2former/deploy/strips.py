"""Image | truth | prediction: pictures that show what a model makes of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from mask2former.data.drawing import draw_truth, spread
from mask2former.data.reading import read_image
from mask2former.deploy.pictures import write_picture
from mask2former.deploy.predictor import Predictor
from mask2former.visualization import draw_prediction, strip

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


def evenly_spaced(dataset_name: str, count: int) -> list[dict[str, Any]]:
    """`count` records spread over a registered dataset, or all of them if it has fewer."""
    return spread(DatasetCatalog.get(dataset_name), count)
