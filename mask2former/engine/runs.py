"""Training and evaluation in two phases: what shows whether config, weights and data sets are right, and the rest."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn

from mask2former.engine.trainer import Trainer
from mask2former.modeling.checkpoint import MaskFormerCheckpointer

__all__ = ["evaluate", "prepare_evaluation", "prepare_training"]


def prepare_training(cfg: CfgNode, *, resume: bool = False) -> Callable[[], Any]:
    """Build the trainer, load weights or with `resume` the last checkpoint in OUTPUT_DIR, and open the data sets.

    Returns:
        `Trainer.train`.

    Raises:
        FileNotFoundError, ImportError, KeyError, ValueError: config, weights or data sets are not as needed.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.open_data()
    return trainer.train


def prepare_evaluation(cfg: CfgNode, *, resume: bool = False) -> Callable[[], OrderedDict[str, Any]]:
    """Build the model, load MODEL.WEIGHTS or with `resume` the last checkpoint in OUTPUT_DIR, and open the data sets.

    Returns:
        What evaluates the model on DATASETS.TEST, see `Trainer.test`, and where TEST.AUG.ENABLED also with
        `Trainer.test_with_TTA`.

    Raises:
        FileNotFoundError, ImportError, KeyError, ValueError: config, weights or data sets are not as needed.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name at least one registered dataset to evaluate on")
    model = Trainer.build_model(cfg)
    if not (cfg.MODEL.WEIGHTS or resume):
        logging.getLogger(__name__).warning("MODEL.WEIGHTS is empty: what is evaluated are random weights")
    checkpointer = MaskFormerCheckpointer.from_config(cfg, model)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    Trainer.try_test_data(cfg)
    return partial(_evaluate, cfg, model)


def evaluate(cfg: CfgNode, *, resume: bool = False) -> OrderedDict[str, Any]:
    """Both phases of `prepare_evaluation` at once."""
    return prepare_evaluation(cfg, resume=resume)()


def _evaluate(cfg: CfgNode, model: nn.Module) -> OrderedDict[str, Any]:
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        for name, tasks in Trainer.test_with_TTA(cfg, model).items():
            results[name] = tasks if len(cfg.DATASETS.TEST) == 1 else {**results[name], **tasks}
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
