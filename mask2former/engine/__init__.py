"""Training and evaluation runs: what `train_net.py` is made of."""

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser as argument_parser

from mask2former.engine.launch import launch
from mask2former.engine.setup import config_for_run, setup_run
from mask2former.engine.trainer import Trainer, evaluate

__all__ = ["CfgNode", "Trainer", "argument_parser", "config_for_run", "evaluate", "launch", "setup_run"]
