"""A model and a training run small enough for many steps per second."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask2former.engine import config_for_run

CONFIGS = Path(__file__).parents[2] / "configs"
OVERRIDES: dict[str, object] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 32,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.CROP.SIZE": (64, 64),
    "INPUT.SIZE_DIVISIBILITY": 64,
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "TEST.EVAL_PERIOD": 0,
    "SEED": 3,
}

#: Changes for comparisons of runs that differ in rounding. AdamW would turn the rounding errors of vanishing gradients
#: into steps of full length.
PLAIN_SGD: dict[str, object] = {
    "SOLVER__OPTIMIZER": "SGD",
    "SOLVER__BASE_LR": 0.01,
    "SOLVER__WARMUP_ITERS": 0,
    "SOLVER__CLIP_GRADIENTS__ENABLED": False,
}


def same_points(*size: int, **arguments: object) -> Tensor:
    """Stands in for `torch.rand`: the same points for every mask, picture and call."""
    points = torch.empty(size[-2:]).uniform_(generator=torch.Generator().manual_seed(0))
    return points.expand(size).clone()


def arguments(output: Path, **changes: object) -> list[str]:
    """`KEY VALUE` pairs for the command line; in `changes` two underscores stand for a dot."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    values = {**OVERRIDES, "OUTPUT_DIR": str(output), **changed}
    return [str(part) for pair in values.items() for part in pair]


def tiny_config(output: Path, task: str = "panoptic", **changes: object) -> CfgNode:
    """The digits config of a task with the tiny model."""
    return config_for_run(str(CONFIGS / "digits" / f"{task}.yaml"), arguments(output, **changes))
