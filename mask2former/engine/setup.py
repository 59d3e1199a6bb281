"""The beginning of a run: device, folder, logs."""

from __future__ import annotations

import argparse
import logging
import os
import platform

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mask2former.config import load_config, on_available_device
from mask2former.engine.checks import check_config, check_output_folder
from mask2former.files import write_atomically

__all__ = ["config_for_run", "setup_run"]


def config_for_run(config_file: str, overrides: list[str]) -> CfgNode:
    """The config of a file and overrides, checked, for a device that is there.

    Raises:
        FileNotFoundError, KeyError, ValueError: what is wrong, where, and what is allowed.
    """
    cfg = load_config(config_file, overrides)
    check_config(cfg)
    return on_available_device(cfg)


def setup_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Prepare the output folder and the logs.

    Like Detectron2's `default_setup`, but a finished run is not touched: a new run refuses its folder, and evaluation
    leaves its config.yaml alone. The full config goes to that file instead of the console, and the trainer seeds the
    random numbers.

    Raises:
        FileExistsError: OUTPUT_DIR holds another run's checkpoints and `--resume` is not given.
    """
    trains_afresh = not (args.eval_only or args.resume)
    if trains_afresh:
        check_output_folder(cfg.OUTPUT_DIR)
    comm.synchronize()  # no rank may write before all have looked
    if comm.is_main_process():
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    comm.synchronize()
    for name in ("fvcore", "detectron2", "mask2former"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    logger = logging.getLogger(__name__)
    config_path = os.path.join(cfg.OUTPUT_DIR, "inference" if args.eval_only else "", "config.yaml")
    if comm.is_main_process():
        os.makedirs(os.path.dirname(config_path), exist_ok=True)
        write_atomically(config_path, lambda file: file.write(cfg.dump().encode()))
    on_cuda = cfg.MODEL.DEVICE.startswith("cuda")
    device = torch.cuda.get_device_name() if on_cuda else f"{torch.get_num_threads()} threads"
    logger.info(
        f"{comm.get_world_size()} process(es) on {cfg.MODEL.DEVICE} ({device}), Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, Detectron2 {detectron2.__version__}"
    )
    logger.info(f"Command line: {vars(args)}; full config: {config_path}")
