"""The trainer: model, data, optimizer, hooks and evaluation of a config."""

from __future__ import annotations

import inspect
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.data.evaluation_loader import build_test_loader
from mask2former.data.loader import build_train_loader
from mask2former.engine.checks import check_class_count, check_config, check_output_folder
from mask2former.engine.hooks import ExamplePictures
from mask2former.engine.optimizer import build_gradient_clipper, build_optimizer
from mask2former.engine.seeding import base_seed, seed_step
from mask2former.engine.train_loop import TrainLoop
from mask2former.engine.writers import ProgressWriter
from mask2former.evaluation import build_evaluator, report_results
from mask2former.modeling.checkpoint import MaskFormerCheckpointer
from mask2former.modeling.inference_precision import cpu_has_bfloat16
from mask2former.registry import DATASET_MAPPER_REGISTRY, lookup
from mask2former.test_time_augmentation import with_test_time_augmentation

__all__ = ["Trainer"]

_WRITER_PERIOD = 20  # steps between lines on the console, in metrics.json and in TensorBoard
_PICTURE_PERIOD = 500  # steps between example pictures in TensorBoard


class Trainer(DefaultTrainer):
    """Trains and evaluates what a config describes, for images and video, on CPU, one GPU or many.

    With `DefaultTrainer`'s interface: `Trainer(cfg)`, `resume_or_load(resume=...)`, `train()`, `Trainer.test(...)`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's constructor: it gives DDP device ids (fails on CPU), starts the data loader before the
        # step to resume from is known, and takes AMPTrainer, which needs CUDA and fp16.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        check_config(cfg)
        _require_training_data(cfg)
        seed = base_seed(cfg.SEED)
        seed_step(seed, 0, rank=0)  # all ranks build the same model
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainLoop(
            model=_distributed(model),
            optimizer=optimizer,
            clip_gradients=build_gradient_clipper(cfg),
            seed=seed,
            autocast_dtype=_autocast_dtype(cfg, model),
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = MaskFormerCheckpointer.from_config(
            cfg, model, starts_training=True, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of `MODEL.META_ARCHITECTURE`, unlike Detectron2's method without printing hundreds of modules."""
        model: nn.Module = build_model(cfg)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        logging.getLogger(__name__).info(f"Model {cfg.MODEL.META_ARCHITECTURE}: {millions:.2f} M parameters")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """DeepLab's builder: WarmupPolyLR beside Detectron2's schedules."""
        try:
            return build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise ValueError(
                f"SOLVER.LR_SCHEDULER_NAME={cfg.SOLVER.LR_SCHEDULER_NAME!r}: {error}; choose from: WarmupPolyLR, "
                "WarmupMultiStepLR, WarmupCosineLR, or what else this Detectron2 knows, and check SOLVER.STEPS"
            ) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0, seed: int = 0) -> Iterable[Any]:
        """Batches from `start_iteration` on; what they hold depends on `seed` and their position alone."""
        name = cfg.INPUT.DATASET_MAPPER_NAME
        # The published files of videos name no mapper, which leaves one that cannot make clips.
        if cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer" and name == "mask_former_semantic":
            name = "joint_clip"
        mapper = lookup(DATASET_MAPPER_REGISTRY, name, "INPUT.DATASET_MAPPER_NAME")(cfg, True)
        loader: Iterable[Any] = build_train_loader(cfg, mapper, start_iteration=start_iteration, seed=seed)
        for name in cfg.DATASETS.TRAIN:
            check_class_count(cfg, name, "DATASETS.TRAIN")
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        loader: Iterable[Any] = build_test_loader(cfg, dataset_name)
        check_class_count(cfg, dataset_name, "DATASETS.TEST")
        return loader

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> OrderedDict[str, Any]:
        """Evaluate on all of DATASETS.TEST; rank 0 prints a table and writes OUTPUT_DIR/inference/metrics.json.

        Returns:
            task -> metric -> value of the only dataset, or dataset -> task -> metric -> value of several (rank 0).
        """
        results: OrderedDict[str, Any] = super().test(cfg, model, evaluators)
        if comm.is_main_process() and results:
            names = cfg.DATASETS.TEST
            by_dataset = results if len(names) > 1 else {names[0]: results}
            report_results(by_dataset, os.path.join(cfg.OUTPUT_DIR, "inference"))
        return results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict[str, Any]:
        """Evaluate the enabled tasks with the copies that TEST.AUG describes; files go to OUTPUT_DIR/inference_TTA.

        Returns:
            As `test`, with "_TTA" after the names of tasks.
        """
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        names = cfg.DATASETS.TEST
        folders = [os.path.join(folder, name if len(names) > 1 else "") for name in names]
        evaluators = [cls.build_evaluator(cfg, *place) for place in zip(names, folders, strict=True)]
        results = super().test(cfg, with_test_time_augmentation(cfg, model), evaluators)
        if len(cfg.DATASETS.TEST) == 1:
            results = {cfg.DATASETS.TEST[0]: results}
        renamed = OrderedDict(
            (name, {f"{task}_TTA": metrics for task, metrics in tasks.items()}) for name, tasks in results.items()
        )
        if comm.is_main_process():
            report_results(renamed, folder)
        return renamed[cfg.DATASETS.TEST[0]] if len(renamed) == 1 else renamed

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR, if there is one and `resume` is on; else load MODEL.WEIGHTS.

        Raises:
            FileExistsError: `resume` is off and OUTPUT_DIR holds another run's checkpoints.
            ValueError: the checkpoint has no training state that fits.
        """
        if not resume:
            check_output_folder(self.cfg.OUTPUT_DIR)
        # Rank 0 decides: on local disks the other machines have no checkpoints.
        last = self.checkpointer.get_checkpoint_file() if resume and self.checkpointer.has_checkpoint() else ""
        last = comm.all_gather(last)[0]
        if not last:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            return
        self.iter = -1
        self.checkpointer.load(last)
        if self.iter < 0:
            raise ValueError(
                f"checkpoint {last!r} has weights but no training state of this project, so there is nothing to "
                "resume: start a new run from it with MODEL.WEIGHTS and another OUTPUT_DIR"
            )
        self.start_iter = self.iter + 1
        logging.getLogger(__name__).info(f"Resuming at step {self.start_iter + 1} of {self.max_iter}")

    def build_hooks(self) -> list[hooks.HookBase]:
        """Timer, schedule, checkpoints, evaluation, example pictures and writers, in this order."""
        cfg = self.cfg
        built: list[hooks.HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader = self.build_train_loader(cfg, seed=self._trainer.seed)
            built.append(hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        if comm.is_main_process():
            # Before evaluation, so that a crash there loses nothing.
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            built.append(ExamplePictures(period=_PICTURE_PERIOD, metadata=MetadataCatalog.get(cfg.DATASETS.TRAIN[0])))
            # Last, so that the figures of evaluation and the pictures are written too.
            built.append(hooks.PeriodicWriter(self.build_writers(), period=_WRITER_PERIOD))
        return built

    def build_writers(self) -> list[EventWriter]:
        """Console, metrics.json and TensorBoard."""
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        return [
            ProgressWriter(self.max_iter),
            JSONWriter(os.path.join(folder, "metrics.json")),
            TensorboardXWriter(folder),
        ]

    def open_data(self) -> None:
        """Open all data sets and start to read the first batches; `train` does so unless it has been done."""
        if self._trainer.data_loader is None and self.start_iter < self.max_iter:
            self.try_test_data(self.cfg)
            seed = self._trainer.seed
            self._trainer.start(self.build_train_loader(self.cfg, start_iteration=self.start_iter, seed=seed))

    def train(self) -> Any:
        """Train from the current step to SOLVER.MAX_ITER.

        Returns:
            What the last evaluation returned.
        """
        logging.getLogger(__name__).info(f"Random numbers start from SEED {self._trainer.seed}")
        self.open_data()
        super().train()
        return self._last_eval_results

    @classmethod
    def try_test_data(cls, cfg: CfgNode) -> None:
        """Find out now, not when their turn comes, that files for an evaluation are missing or cut off."""
        for name in cfg.DATASETS.TEST:
            cls.build_test_loader(cfg, name)
            cls.build_evaluator(cfg, name)

    def state_dict(self) -> dict[str, Any]:
        # Not DefaultTrainer's: up to 0.5 it leaves out the optimizer.
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict(), "seed": self._trainer.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        if self.cfg.SEED < 0:
            self._trainer.seed = state_dict["seed"]

    def _evaluate(self) -> OrderedDict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results


def _require_training_data(cfg: CfgNode) -> None:
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name at least one registered dataset")
    for name in cfg.DATASETS.TRAIN:  # once more after loading, when the metadata of some datasets is filled
        check_class_count(cfg, name, "DATASETS.TRAIN")


def _distributed(model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    on_cuda = next(model.parameters()).is_cuda
    arguments: dict[str, Any] = {"device_ids": [torch.cuda.current_device()] if on_cuda else None}
    # No forward pass exchanges buffers, as in Detectron2: statistics are frozen or SyncBN's own; those of plain BN are
    # each rank's, and rank 0's are saved. The switch was renamed in torch 2.13.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    arguments["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    return DistributedDataParallel(model, **arguments)


def _autocast_dtype(cfg: CfgNode, model: nn.Module) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    precision, on_cuda = cfg.SOLVER.AMP.PRECISION, next(model.parameters()).is_cuda
    if on_cuda or (precision == "bf16" and cpu_has_bfloat16()):
        return torch.bfloat16 if precision == "bf16" else torch.float16
    need = "a GPU (many CPUs have bf16)" if precision == "fp16" else "a GPU, or a CPU with products in bfloat16"
    logging.getLogger(__name__).warning(f"SOLVER.AMP.PRECISION {precision} needs {need}: training in float32")
    return None
