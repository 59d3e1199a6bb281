"""Strips of image, truth and prediction; the truth is read from each kind of label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data.reading import read_image
from mask2former.deploy.strips import draw_truth, evenly_spaced, write_strips
from mask2former.visualization import enlarge


class FindsNothing:
    """Stands in for a predictor."""

    def __init__(self, dataset_name):
        self.metadata = MetadataCatalog.get(dataset_name)

    def __call__(self, image):
        return {"panoptic_seg": (torch.zeros(image.shape[:2], dtype=torch.int32), [])}


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_truth_of_every_task_is_drawn(digits_root, task):
    name = f"digits_{task}_val"
    for record in DatasetCatalog.get(name):
        image = read_image(record["file_name"], "RGB")
        painted = (draw_truth(image, record, MetadataCatalog.get(name)) != enlarge(image)).any(-1).mean()
        # Textures fill the picture, discs do not.
        assert (0.01 < painted < 0.9) if task == "instance" else painted > 0.9


def test_a_record_without_labels_is_named(digits_root):
    record = {"file_name": "scene.png"}
    with pytest.raises(ValueError, match=r"scene\.png"):
        draw_truth(np.zeros((8, 8, 3), dtype=np.uint8), record, MetadataCatalog.get("digits_panoptic_val"))


def test_strips_have_the_names_of_their_pictures(digits_root, tmp_path):
    records = evenly_spaced("digits_panoptic_val", 3)
    paths = list(write_strips(FindsNothing("digits_panoptic_val"), records, tmp_path / "strips"))
    assert [path.name for path in paths] == ["000000.png", "000002.png", "000003.png"]
    height, width = np.asarray(Image.open(paths[0])).shape[:2]
    assert width > 3 * 384 and height > 384


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 3]), (9, [0, 1, 2, 3])])
def test_records_are_spread_over_the_dataset(digits_root, count, expected):
    chosen = evenly_spaced("digits_panoptic_val", count)
    assert [int(record["file_name"].split("/")[-1].split(".")[0]) for record in chosen] == expected
