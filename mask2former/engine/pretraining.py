"""Pre-training of a backbone on single digits: the embedded stand-in for ImageNet weights.

Masks are learned quickly from nothing, digits are not: as on ImageNet, a backbone that has already seen single objects
saves most of the training. The picture is one disc on one texture (`digit_crops`), the class its digit or, for a
texture alone, the texture; the head is global average pooling and a linear layer, and it is thrown away.
"""

# B crops, C channels, s pixels a side, K classes.

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mask2former.data.datasets.digits import NUM_DIGITS, TEXTURES, digit_crops
from mask2former.data.loader import seeded
from mask2former.files import write_atomically

__all__ = ["CropClassifier", "PretrainingSettings", "pretrain_backbone"]

_LOG_PERIOD = 50
_NUM_VALIDATION_BATCHES = 16


@dataclass(frozen=True)
class PretrainingSettings:
    """How long and on what the backbone is trained."""

    num_steps: int = 1000
    batch_size: int = 64
    crop_size: int = 48  # pixels; a disc is then about as large as in a scene of 96 pixels
    learning_rate: float = 2e-3  # peak of a one-cycle schedule
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    num_workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "crop_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class CropClassifier(nn.Module):
    """Normalization, backbone, average pooling, one linear layer."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, *, backbone: Backbone, pixel_mean: list[float], pixel_std: list[float]) -> None:
        super().__init__()
        self.backbone = backbone
        shapes = backbone.output_shape()
        self.coarsest = max(shapes, key=lambda name: shapes[name].stride)
        self.classifier = nn.Linear(shapes[self.coarsest].channels, NUM_DIGITS + len(TEXTURES))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CropClassifier:
        """The backbone of a config, with BatchNorm that learns in the place of frozen statistics."""
        cfg = cfg.clone()
        cfg.defrost()
        if cfg.MODEL.RESNETS.NORM == "FrozenBN":
            cfg.MODEL.RESNETS.NORM = "BN"
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        backbone = build_backbone(cfg)
        mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        return cls(backbone=backbone, pixel_mean=mean, pixel_std=std)

    def forward(self, images_B3ss: Tensor) -> Tensor:
        """(B, 3, s, s) pixels in 0..255 in the order of INPUT.FORMAT -> (B, K) logits."""
        features_BCss = self.backbone((images_B3ss - self.pixel_mean) / self.pixel_std)[self.coarsest]
        logits_BK: Tensor = self.classifier(features_BCss.mean(dim=(2, 3)))
        return logits_BK


class CropBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batch i is a pure function of (seed, i), whichever worker makes it."""

    def __init__(self, split: str, settings: PretrainingSettings, num_batches: int) -> None:
        self.split = split
        self.settings = settings
        self.num_batches = num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(B, 3, s, s) uint8 crops and (B,) int64 classes."""
        if index >= self.num_batches:
            raise IndexError(index)
        settings = self.settings
        crops = digit_crops(self.split, settings.crop_size, np.random.default_rng((settings.seed, index)))
        images, classes = zip(*(next(crops) for _ in range(settings.batch_size)), strict=True)
        return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), torch.tensor(classes)


def pretrain_backbone(cfg: CfgNode, output: str | Path, settings: PretrainingSettings) -> float:
    """Trains the backbone of a config to tell single digits and textures apart, and writes its weights.

    The file has the form of ImageNet weights (names without the prefix "backbone.", matched by their endings), so that
    `MODEL.WEIGHTS` takes it.

    Returns:
        Share of validation crops, by writers not trained on, that are classified correctly.
    """
    logger = logging.getLogger(__name__)
    device = torch.device(cfg.MODEL.DEVICE)
    with seeded(settings.seed):
        model = CropClassifier.from_config(cfg).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=settings.num_steps, pct_start=0.2
    )
    started = time.perf_counter()
    model.train()
    for step, (images_B3ss, classes_B) in enumerate(_batches("train", settings, settings.num_steps, device), start=1):
        logits_BK = model(images_B3ss)
        loss = F.cross_entropy(logits_BK, classes_B, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _LOG_PERIOD == 0 or step == settings.num_steps:
            accuracy = (logits_BK.argmax(1) == classes_B).float().mean().item()
            remaining = (time.perf_counter() - started) / step * (settings.num_steps - step)
            logger.info(
                f"step {step}/{settings.num_steps}: loss {loss.item():.3f}, accuracy {accuracy:.1%}, "
                f"{remaining:.0f} s left"
            )
            if not math.isfinite(loss.item()):
                raise ValueError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
    accuracy = _validate(model, settings, device)
    logger.info(f"validation accuracy {accuracy:.1%} after {time.perf_counter() - started:.0f} s")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    content = {**_as_backbone_file(model.backbone), "accuracy": accuracy}
    write_atomically(output, lambda file: torch.save(content, file))
    return accuracy


@torch.no_grad()
def _validate(model: CropClassifier, settings: PretrainingSettings, device: torch.device) -> float:
    model.eval()
    hits = [
        (model(images_B3ss).argmax(1) == classes_B).float().mean()
        for images_B3ss, classes_B in _batches("val", settings, _NUM_VALIDATION_BATCHES, device)
    ]
    return float(torch.stack(hits).mean())


def _batches(
    split: str, settings: PretrainingSettings, num_batches: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, 3, s, s) float crops in 0..255 and (B,) int64 classes on the device."""
    batches = CropBatches(split, settings, num_batches)
    loader = DataLoader(batches, batch_size=None, num_workers=settings.num_workers, generator=torch.Generator())
    for images_B3ss, classes_B in loader:
        images_B3ss = images_B3ss.to(device).float().contiguous(memory_format=torch.channels_last)
        yield images_B3ss, classes_B.to(device)


def _as_backbone_file(backbone: nn.Module) -> dict[str, Any]:
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")  # frozen normalization does not have it
    }
    return {"model": tensors, "__author__": "mask2former digits", "matching_heuristics": True}
