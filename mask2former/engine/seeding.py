"""Randomness as a function of (seed, step, rank): whoever resumes needs no state of any generator."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from detectron2.utils import comm

__all__ = ["base_seed", "seed_step"]


def base_seed(configured: int) -> int:
    """`SEED` of the config; when that is negative a random number, the same on all ranks."""
    if configured >= 0:
        return configured
    return int(comm.all_gather(int.from_bytes(os.urandom(4), "little"))[0])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch (CPU and CUDA), NumPy and Python's `random` for one step on one rank."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(4)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))
    np.random.seed(int(state[2]))
    random.seed(int(state[3]))
