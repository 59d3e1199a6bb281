"""Run by test_launch.py under torchrun: four steps that crash once after the first checkpoint.

In every other step the second half of the batch, that is all of rank 1's, has no targets.
"""

from __future__ import annotations

import mask2former  # noqa: F401  # isort: skip  (before Detectron2, which may need its help to import)

import os
import sys
from pathlib import Path

import torch
from detectron2.engine import hooks
from detectron2.utils import comm

from mask2former.engine import Trainer, argument_parser, launch, setup_run
from tests.engine.tiny import PLAIN_SGD, same_points, tiny_config

STEPS = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2, "DATASETS__TEST": ()}


class HalfEmptyTrainer(Trainer):
    @classmethod
    def build_train_loader(cls, cfg, *, start_iteration=0, seed=0):
        batches = super().build_train_loader(cfg, start_iteration=start_iteration, seed=seed)
        return (cls._emptied(batch) if step % 2 else batch for step, batch in enumerate(batches, start_iteration))

    @staticmethod
    def _emptied(batch):
        num_kept = STEPS["SOLVER__IMS_PER_BATCH"] // 2 if comm.get_rank() == 0 else 0
        return batch[:num_kept] + [{**sample, "instances": sample["instances"][:0]} for sample in batch[num_kept:]]


def crash_in_first_attempt(trainer):
    if trainer.iter == 2 and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        raise ConnectionError("a worker is lost on purpose")


def train(cfg, args):
    setup_run(cfg, args)
    trainer = HalfEmptyTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    assert trainer.start_iter == (2 if args.resume else 0)
    trainer.register_hooks([hooks.CallbackHook(after_step=crash_in_first_attempt)])
    trainer.train()
    if comm.is_main_process():
        losses = {name: value for name, (value, _) in trainer.storage.latest().items() if "loss" in name}
        result = {"world_size": comm.get_world_size(), "resumed": args.resume, "losses": losses}
        torch.save({**result, "model": trainer.checkpointer.model.state_dict()}, Path(cfg.OUTPUT_DIR) / "result.pth")


if __name__ == "__main__":
    torch.rand = same_points
    launch(train, tiny_config(Path(sys.argv[1]), **STEPS, **PLAIN_SGD), argument_parser().parse_args([]))
