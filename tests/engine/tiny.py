"""A model and a training run small enough for many steps per second."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode

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


def arguments(output: Path, **changes: object) -> list[str]:
    """`KEY VALUE` pairs for the command line; in `changes` two underscores stand for a dot."""
    values = {
        **OVERRIDES,
        "OUTPUT_DIR": str(output),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [str(part) for pair in values.items() for part in pair]


def tiny_config(output: Path, task: str = "panoptic", **changes: object) -> CfgNode:
    """The digits config of a task with the tiny model."""
    return config_for_run(str(CONFIGS / "digits" / f"{task}.yaml"), arguments(output, **changes))
