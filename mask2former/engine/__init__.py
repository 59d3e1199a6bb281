"""Training and evaluation runs: what `train_net.py` is made of."""

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser as argument_parser

from mask2former.engine.launch import launch
from mask2former.engine.runs import evaluate, prepare_evaluation, prepare_training
from mask2former.engine.setup import config_for_run, setup_run
from mask2former.engine.trainer import Trainer
from mask2former.engine.user_errors import short_errors

__all__ = [
    "CfgNode",
    "Trainer",
    "argument_parser",
    "config_for_run",
    "evaluate",
    "launch",
    "prepare_evaluation",
    "prepare_training",
    "setup_run",
    "short_errors",
]
