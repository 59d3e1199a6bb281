"""What outside code imports, selects by name and calls: frozen here, so that no change breaks it by accident."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from torch import nn

import mask2former
from mask2former.modeling import postprocessing
from mask2former.modeling.pixel_decoder import ops
from mask2former.registry import DATASET_MAPPER_REGISTRY, TRANSFORMER_DECODER_REGISTRY

EXPORTS = [
    "add_maskformer2_config",
    "MaskFormer",
    "SemanticSegmentorWithTTA",
    "InstanceSegEvaluator",
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
]


@pytest.mark.parametrize("name", EXPORTS)
def test_the_package_exports_the_published_names(name: str) -> None:
    assert callable(getattr(mask2former, name))
    assert name in mask2former.__all__


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        (META_ARCH_REGISTRY, ["MaskFormer", "SemanticSegmentor"]),
        (BACKBONE_REGISTRY, ["D2SwinTransformer", "build_resnet_backbone", "build_resnet_deeplab_backbone"]),
        (SEM_SEG_HEADS_REGISTRY, ["MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"]),
        (
            SEM_SEG_HEADS_REGISTRY,
            ["BasePixelDecoder", "TransformerEncoderPixelDecoder", "MSDeformAttnPixelDecoder"],
        ),
        (
            TRANSFORMER_DECODER_REGISTRY,
            [
                "StandardTransformerDecoder",
                "MultiScaleMaskedTransformerDecoder",
                "VideoMultiScaleMaskedTransformerDecoder",
            ],
        ),
        (
            DATASET_MAPPER_REGISTRY,
            [
                "mask_former_semantic",
                "mask_former_panoptic",
                "mask_former_instance",
                "coco_instance_lsj",
                "coco_panoptic_lsj",
            ],
        ),
    ],
)
def test_published_names_are_registered(registry, names: list[str]) -> None:
    assert [name for name in names if name not in registry] == []


def test_the_transformer_decoder_registry_keeps_its_published_name() -> None:
    assert TRANSFORMER_DECODER_REGISTRY._name == "TRANSFORMER_MODULE"


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic", "video"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_embedded_datasets_are_registered(task: str, split: str) -> None:
    assert f"digits_{task}_{split}" in DatasetCatalog.list()


def test_the_published_coco_names_of_this_project_are_registered() -> None:
    assert {f"coco_2017_{split}_panoptic_with_sem_seg" for split in ("train", "val")} <= set(DatasetCatalog.list())


def _parameters(function) -> list[tuple[str, bool]]:
    """Names of the parameters, and whether each must be given by name."""
    return [(p.name, p.kind is p.KEYWORD_ONLY) for p in inspect.signature(function).parameters.values()]


def test_postprocessing_is_called_as_published() -> None:
    logits = [("class_logits", False), ("mask_logits", False)]
    assert _parameters(postprocessing.semantic_inference) == logits
    assert _parameters(postprocessing.panoptic_inference)[:5] == [
        *logits,
        ("thing_ids", True),
        ("object_mask_threshold", True),
        ("overlap_threshold", True),
    ]
    assert _parameters(postprocessing.instance_inference) == [*logits, ("topk", True), ("thing_ids", True)]


@pytest.mark.parametrize("name", ["ms_deform_attn", "ms_deform_attn_reference"])
def test_the_operator_is_called_as_published(name: str) -> None:
    names = [name for name, _ in _parameters(getattr(ops, name))]
    assert names == ["value", "spatial_shapes", "sampling_locations", "attention_weights"]


def test_the_plain_operator_is_always_available() -> None:
    assert "reference" in ops.available_backends()
    assert issubclass(ops.MSDeformAttn, nn.Module)


def test_importing_touches_no_device_and_no_dataset(tmp_path: Path) -> None:
    program = """
import os, sys
root, touched = os.environ["DETECTRON2_DATASETS"], []
sys.addaudithook(lambda event, args: touched.append((event, args)) if any(root in str(a) for a in args) else None)
import torch, mask2former
print(torch.cuda.is_initialized(), [event for event in touched if event[0] in ("open", "os.listdir", "os.scandir")])
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
    )
    assert result.stdout.split() == ["False", "[]"]
