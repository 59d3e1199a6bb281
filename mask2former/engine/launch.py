"""Starting a function in one or many processes: `--num-gpus`, several machines, or under torchrun (CPU included)."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import launch as spawn
from detectron2.utils import comm
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # public, though not marked as exported
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException  # type: ignore[attr-defined]  # public, as above

from mask2former.engine.user_errors import short_errors

__all__ = ["launch"]

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
_OWNER_FILE = "launched_by"


def launch(main: Callable[[CfgNode, argparse.Namespace], Any], cfg: CfgNode, args: argparse.Namespace) -> Any:
    """Call `main(cfg, args)` in every process of the run.

    Under torchrun this process is one of them already, and `--num-gpus`, `--num-machines`, `--machine-rank` and
    `--dist-url` are not read; after an elastic restart the run resumes from its last checkpoint. Otherwise Detectron2
    starts `--num-gpus` processes.

    Returns:
        What `main` returns; None when it ran in other processes.

    Raises:
        SystemExit: more processes than CUDA devices, or a process has ended the program.
    """
    if all(name in os.environ for name in _TORCHRUN_VARIABLES):
        return _run_under_torchrun(main, cfg, args)
    with short_errors():
        _check_devices(cfg, args)
    if args.num_gpus * args.num_machines == 1:
        return main(cfg, args)
    try:
        spawn(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(cfg, args))
    except ProcessExitedException as error:
        if error.signal_name is not None:
            raise
        sys.exit(error.exit_code)  # it has said why: a traceback of this process would bury that
    return None


def _check_devices(cfg: CfgNode, args: argparse.Namespace) -> None:
    num_devices = torch.cuda.device_count() if cfg.MODEL.DEVICE.startswith("cuda") else 0
    if args.num_gpus > max(num_devices, 1) or (args.num_machines > 1 and num_devices == 0):
        raise ValueError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}, but this machine has {num_devices} CUDA "
            "devices for MODEL.DEVICE; several processes on CPU run under torchrun: "
            "torchrun --nproc-per-node 2 train_net.py --config-file ..."
        )


def _run_under_torchrun(
    main: Callable[[CfgNode, argparse.Namespace], Any], cfg: CfgNode, args: argparse.Namespace
) -> Any:
    # Detectron2's launch() starts its own processes and insists on NCCL.
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    uses_cuda = cfg.MODEL.DEVICE.startswith("cuda")
    if uses_cuda:
        with short_errors():
            if local_size > torch.cuda.device_count():
                raise ValueError(f"--nproc-per-node {local_size}, but there are {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local_rank)
    # Under a prefix of its own each attempt is safe from the addresses that dead workers of an earlier one left in the
    # agent's store (seen with torch 2.15 and gloo: "connection refused" after a restart).
    store, rank, world_size = next(iter(rendezvous("env://")))
    attempt = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if uses_cuda else "gloo", store=attempt, rank=rank, world_size=world_size)
    _create_local_group(local_size)
    if not args.eval_only:
        args.resume = args.resume or _is_restart_of_this_launch(cfg.OUTPUT_DIR)
    result = main(cfg, args)
    dist.destroy_process_group()  # not after an exception: with a peer gone it would wait for ever
    return result


def _create_local_group(local_size: int) -> None:
    """Tell Detectron2 which ranks share this machine."""
    if hasattr(comm, "create_local_process_group"):  # later than 0.6
        comm.create_local_process_group(local_size)
        return
    for first in range(0, dist.get_world_size(), local_size):
        group = dist.new_group(list(range(first, first + local_size)))
        if first <= dist.get_rank() < first + local_size:
            comm._LOCAL_PROCESS_GROUP = group


def _is_restart_of_this_launch(output_folder: str) -> bool:
    """Whether torchrun has restarted its workers after this launch had begun to train in this folder.

    The restart count alone does not tell: a first attempt that refused the folder because of another run's checkpoints
    is restarted as well, and must not continue that run.
    """
    # Without --rdzv-id the run id is "none"; then the agent, the parent of this machine's workers, stands for the run.
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    launch_id = f"{socket.gethostname()}:{os.getppid()}" if run_id == "none" else run_id
    owner_file = Path(output_folder) / _OWNER_FILE
    is_restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    is_owner = owner_file.is_file() and owner_file.read_text() == launch_id
    (resumes,) = comm.all_gather(is_restart and is_owner)[:1]
    if comm.is_main_process() and not (Path(output_folder) / "last_checkpoint").exists():
        owner_file.parent.mkdir(parents=True, exist_ok=True)
        owner_file.write_text(launch_id)
    return bool(resumes)
