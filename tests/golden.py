"""Reference figures of the original implementation, and the deterministic weights and pictures behind them."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former import MaskFormer
from mask2former.config import load_config

DATA = Path(__file__).parent / "data"
CONFIGS = Path(__file__).parent.parent / "configs"


@cache
def golden() -> dict[str, Any]:
    return json.loads((DATA / "golden.json").read_text())


@cache
def published_state_dicts() -> dict[str, Any]:
    return json.loads(gzip.decompress((DATA / "state_dicts.json.gz").read_bytes()))


@torch.no_grad()
def fill_deterministically(model: nn.Module) -> None:
    """Overwrite every floating tensor with noise that follows from its name alone (`golden.json`, `_meta.weights`)."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name == "criterion.empty_weight":
            continue
        noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*tensor.shape)
        tensor.copy_(torch.from_numpy(_scaled(name, noise)))


def golden_panoptic_model() -> MaskFormer:
    """COCO panoptic R50 with the weights and thresholds of `full_inference_R50_coco_panoptic`, on the CPU."""
    test = "MODEL.MASK_FORMER.TEST"
    thresholds = [f"{test}.OBJECT_MASK_THRESHOLD", "0.0", f"{test}.OVERLAP_THRESHOLD", "0.3"]
    config_file = CONFIGS / "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
    model = MaskFormer(load_config(config_file, ["MODEL.DEVICE", "cpu", *thresholds]))
    fill_deterministically(model)
    return model.eval()


def _scaled(name: str, noise: np.ndarray) -> np.ndarray:
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(noise)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if name.endswith("sampling_offsets.bias"):
        return 2 * noise
    if noise.ndim == 1:
        return 1 + 0.1 * noise if name.endswith(".weight") else 0.1 * noise
    return noise / math.sqrt(math.prod(noise.shape[1:]))


def picture(seed: int, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (3, *size)).astype(np.uint8))


def network_input(seed: int, size: tuple[int, int], padded_size: tuple[int, int]) -> Tensor:
    """A picture as the network sees it: (1, 3, H, W) normalized with ImageNet's statistics, then padded with zeros."""
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    normalized = (picture(seed, size).float() - mean) / std
    return F.pad(normalized, (0, padded_size[1] - size[1], 0, padded_size[0] - size[0])).unsqueeze(0)


def random_normal(seed: int, *shape: int) -> Tensor:
    """float32, as `golden.json` writes randn(seed)(shape)."""
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape).astype(np.float32))


def deviation(tensor: Tensor, fingerprint: dict[str, Any]) -> float:
    """How far a tensor is from a fingerprint, relative to the size of the recorded values (0 = equal)."""
    assert tensor.numel() == fingerprint["numel"], f"{tuple(tensor.shape)} has not {fingerprint['numel']} elements"
    if "shape" in fingerprint:
        assert list(tensor.shape) == fingerprint["shape"]
    flat = tensor.detach().double().flatten()
    root_mean_square = math.sqrt(fingerprint["sq_sum"] / fingerprint["numel"])
    single = max(abs(flat[int(index)].item() - value) for index, value in fingerprint["at"].items()) / root_mean_square
    total = abs(flat.sum().item() - fingerprint["sum"]) / fingerprint["abs_sum"]
    energy = abs(flat.square().sum().item() - fingerprint["sq_sum"]) / fingerprint["sq_sum"]
    return max(single, total, energy)
