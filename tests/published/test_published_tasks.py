"""From the files of a release to figures: preparation, loading, training and evaluation of every published task."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from mask2former.data.masks import decode_segmentations, rgb_to_id, tight_boxes
from mask2former.data.reading import read_class_map, read_panoptic_ids
from mask2former.engine import Trainer, config_for_run
from mask2former.evaluation import build_evaluator
from tests.engine.tiny import CONFIGS, arguments
from tests.published.releases import (
    write_ade20k,
    write_cityscapes,
    write_coco,
    write_mapillary_vistas,
    write_youtube_vis,
)

SCRIPTS = (
    "prepare_ade20k_sem_seg",
    "prepare_ade20k_ins_seg",
    "prepare_ade20k_pan_seg",
    "prepare_coco_semantic_annos_from_panoptic_annos",
    "prepare_cityscapes",
    "prepare_mapillary_vistas",
)
SUMMARY = {"PQ", "AP", "mIoU", "IoU"}
#: Published file -> what its evaluation reports.
TASKS = {
    "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml": {"sem_seg"},
    "ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml": {"sem_seg", "panoptic_seg", "bbox", "segm"},
    "ade20k/instance-segmentation/maskformer2_R50_bs16_160k.yaml": {"bbox", "segm"},
    "cityscapes/semantic-segmentation/maskformer2_R50_bs16_90k.yaml": {"sem_seg"},
    "cityscapes/panoptic-segmentation/maskformer2_R50_bs16_90k.yaml": {"sem_seg", "panoptic_seg", "segm"},
    "cityscapes/instance-segmentation/maskformer2_R50_bs16_90k.yaml": {"segm"},
    "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml": {"sem_seg", "panoptic_seg", "bbox", "segm"},
    "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml": {"bbox", "segm"},
    "mapillary-vistas/semantic-segmentation/maskformer2_R50_bs16_300k.yaml": {"sem_seg"},
    "mapillary-vistas/panoptic-segmentation/maskformer_R50_bs16_300k.yaml": {"sem_seg", "panoptic_seg"},
    "ade20k-150/maskformer_R50_bs16_160k.yaml": {"sem_seg"},
    "ade20k-150/per_pixel_baseline_R50_bs16_160k.yaml": {"sem_seg"},
    "ade20k-150/per_pixel_baseline_plus_R50_bs16_160k.yaml": {"sem_seg"},
    "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml": {"sem_seg", "panoptic_seg"},
    "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml": {"segm"},
}


@pytest.fixture(scope="module", autouse=True)
def prepared_root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All releases, prepared by the scripts; the root has a dot in its name, which once was too much for Cityscapes."""
    root = tmp_path_factory.mktemp("data") / "data.sets"
    for write in (write_ade20k, write_coco, write_cityscapes, write_mapillary_vistas, write_youtube_vis):
        write(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        for script in SCRIPTS:
            runpy.run_path(f"datasets/{script}.py")["main"](["--num-workers", "1"])
        yield root


@pytest.mark.parametrize("file", TASKS)
def test_a_published_config_trains_and_evaluates(file: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "MODEL__WEIGHTS": "",
        "SOLVER__MAX_ITER": 1,
        "SOLVER__STEPS": (),
        "SOLVER__AMP__ENABLED": False,
        "INPUT__IMAGE_SIZE": 64,
        "MODEL__MASK_FORMER__TEST__OBJECT_MASK_THRESHOLD": 0.0,
    }
    if "per_pixel_baseline_plus" in file:
        changes["MODEL__MASK_FORMER__NUM_OBJECT_QUERIES"] = 150
    trainer = Trainer(config_for_run(str(CONFIGS / file), arguments(tmp_path, **changes)))
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    results = trainer.train()
    assert set(results) == TASKS[file]
    assert all(math.isfinite(value) for metrics in results.values() for key, value in metrics.items() if key in SUMMARY)
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("file", [file for file in TASKS if "_R50_" in file and file.count("/") == 2])
def test_the_truth_gets_full_marks(file: str, tmp_path: Path) -> None:
    cfg = config_for_run(str(CONFIGS / file), ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"])
    name = cfg.DATASETS.TEST[0]
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [_truth(record, name, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)])
    results = evaluator.evaluate()
    assert set(results) == TASKS[file]
    figures = {(task, key): value for task, metrics in results.items() for key, value in metrics.items()}
    of_classes_that_occur = [value for value in figures.values() if not math.isnan(value)]
    assert of_classes_that_occur == pytest.approx([100.0] * len(of_classes_that_occur))
    assert any(key in SUMMARY for _, key in figures)


def _truth(record: dict[str, Any], name: str, num_classes: int) -> dict[str, Any]:
    """A record's labels as a model would answer."""
    output: dict[str, Any] = {}
    if "sem_seg_file_name" in record:
        labels = torch.from_numpy(read_class_map(record["sem_seg_file_name"]).astype(np.int64))
        labels[labels >= num_classes] = 0  # void is not judged
        output["sem_seg"] = torch.nn.functional.one_hot(labels, num_classes).permute(2, 0, 1).float()
    masks, classes = [], []
    if "pan_seg_file_name" in record:
        ids = torch.from_numpy(rgb_to_id(read_panoptic_ids(record["pan_seg_file_name"])))
        things = set(MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id.values())
        segments = [
            {"id": segment["id"], "category_id": segment["category_id"], "isthing": segment["category_id"] in things}
            for segment in record["segments_info"]
        ]
        output["panoptic_seg"] = ids, segments
        masks = [ids == segment["id"] for segment in segments if segment["isthing"]]
        classes = [segment["category_id"] for segment in segments if segment["isthing"]]
    elif "annotations" in record:
        size = record["height"], record["width"]
        masks = list(torch.from_numpy(decode_segmentations([a["segmentation"] for a in record["annotations"]], size)))
        classes = [annotation["category_id"] for annotation in record["annotations"]]
    if masks:
        instances = Instances(masks[0].shape)
        instances.pred_masks = torch.stack(masks)
        instances.pred_boxes = Boxes(tight_boxes(instances.pred_masks))
        instances.scores = torch.ones(len(masks))
        instances.pred_classes = torch.tensor(classes)
        output["instances"] = instances
    return output
