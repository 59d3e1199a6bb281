"""Names a config can select: what exists and what an unknown one is told."""

import pytest

import mask2former  # noqa: F401  (fills the registries)
from mask2former.registry import (
    DATASET_MAPPER_REGISTRY,
    PIXEL_DECODER_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
    lookup,
)


@pytest.mark.parametrize(
    ("registry", "name"),
    [
        (PIXEL_DECODER_REGISTRY, "MSDeformAttnPixelDecoder"),
        (TRANSFORMER_DECODER_REGISTRY, "MultiScaleMaskedTransformerDecoder"),
        (DATASET_MAPPER_REGISTRY, "mask_former_semantic"),
        (DATASET_MAPPER_REGISTRY, "mask_former_panoptic"),
        (DATASET_MAPPER_REGISTRY, "mask_former_instance"),
        (DATASET_MAPPER_REGISTRY, "coco_instance_lsj"),
        (DATASET_MAPPER_REGISTRY, "coco_panoptic_lsj"),
    ],
)
def test_published_names_are_registered(registry, name) -> None:
    assert callable(lookup(registry, name, "KEY"))


def test_an_unknown_name_is_told_the_key_and_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"INPUT\.DATASET_MAPPER_NAME='coco_lsj' is unknown.*coco_instance_lsj"):
        lookup(DATASET_MAPPER_REGISTRY, "coco_lsj", "INPUT.DATASET_MAPPER_NAME")
