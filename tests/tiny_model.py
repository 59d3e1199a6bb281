"""A whole model small enough for unit tests, and samples for it."""

from __future__ import annotations

# Child processes start at this module: an old Detectron2 does not import without it.
from mask2former import compat  # noqa: F401  # isort: skip

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mask2former import MaskFormer, add_maskformer2_config
from tests.modeling.fixed_points import fixed_points

NUM_CLASSES, NUM_QUERIES, NUM_PREDICTIONS = 4, 6, 4
THING_IDS = [0, 2]
DATASET = "tiny_model_train"
SIZE = (64, 64)
#: Overrides of `tiny_config` that take a ResNet-18 for the backbone.
RESNET_18: tuple[Any, ...] = (
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
)


def tiny_config(*overrides: Any) -> CfgNode:
    """A Swin backbone of 8 channels and a decoder of width 16; all three results on."""
    MetadataCatalog.get(DATASET).thing_dataset_id_to_contiguous_id = {10 + index: index for index in THING_IDS}
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    settings = {
        "DATASETS.TRAIN": (DATASET,),
        "MODEL.DEVICE": "cpu",
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.EMBED_DIM": 8,
        "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
        "MODEL.SWIN.NUM_HEADS": [1, 1, 2, 2],
        "MODEL.SWIN.WINDOW_SIZE": 4,
        "MODEL.SWIN.DROP_PATH_RATE": 0.0,
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
        "MODEL.MASK_FORMER.HIDDEN_DIM": 16,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
        "MODEL.MASK_FORMER.NHEADS": 2,
        "MODEL.MASK_FORMER.DROPOUT": 0.0,
        "MODEL.MASK_FORMER.DEC_LAYERS": NUM_PREDICTIONS,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": NUM_QUERIES,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
        "MODEL.MASK_FORMER.CLASS_WEIGHT": 2.0,
        "MODEL.MASK_FORMER.MASK_WEIGHT": 5.0,
        "MODEL.MASK_FORMER.DICE_WEIGHT": 5.0,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
    }
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    cfg.merge_from_list(list(overrides))
    return cfg


def tiny_model(*overrides: Any) -> MaskFormer:
    """Random weights (seed 0); losses are computed at fixed points, so that they can be compared between batches."""
    torch.manual_seed(0)
    model = build_model(tiny_config(*overrides))
    model.criterion.draw_points = model.criterion.matcher.draw_points = fixed_points
    return model


def tiny_sample(num_targets: int = 2, seed: int = 0, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """A noise picture with rectangles as targets."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances(size)
    instances.gt_classes = torch.randint(0, NUM_CLASSES, (num_targets,), generator=generator)
    instances.gt_masks = torch.zeros(num_targets, *size, dtype=torch.bool)
    for mask in instances.gt_masks:
        top, left = (int(torch.randint(0, side // 2, (), generator=generator)) for side in size)
        mask[top : top + size[0] // 3, left : left + size[1] // 3] = True
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"file_name": f"sample_{seed}.png", "image": image, "instances": instances}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter; a missing one is an error."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def distributed_losses(rank: int, num_ranks: int, folder: Path, cases: list[list[int]]) -> None:
    """Body of one process: losses and gradients of sample number `rank`, written to folder/<rank>.pt.

    Args:
        rank, num_ranks: this process and all of them.
        folder: where processes meet and leave results.
        cases: for each case the number of targets of every rank.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=num_ranks)
    model = tiny_model()
    parallel = DistributedDataParallel(model)
    results = []
    for num_targets in cases:
        losses = parallel([tiny_sample(num_targets[rank], rank)])
        model.zero_grad()
        sum(losses.values()).backward()
        results.append(({name: value.detach() for name, value in losses.items()}, gradients(model)))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
