"""What is measured: how many pictures of which size, and with how many targets."""

# H, W pixels of a picture; N targets of a picture.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DTYPES", "Workload", "check_device", "pictures", "training_samples"]

#: Names of precisions, and what autocast computes in.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Workload:
    """One line of measurements.

    Attributes:
        size: (height, width) of the pictures.
        batch_size: pictures of one call.
        training: a training step instead of inference.
        num_targets: of each picture, in training.
        precision: "fp32", "bf16" or "fp16".
        kept_queries: how many queries the panoptic merge of the first picture gets, as from a trained model; untrained
            it would get none. 0 leaves the threshold as the config has it.
        processor_time: seconds are those of all threads on the CPU, which other programs change little.
    """

    size: tuple[int, int]
    batch_size: int = 1
    training: bool = False
    num_targets: int = 20
    precision: str = "fp32"
    kept_queries: int = 20
    processor_time: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"--size {self.size} must be a height and a width of at least 1 pixel")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size} must be at least 1")
        if self.num_targets < 0 or self.kept_queries < 0:
            raise ValueError(f"--targets {self.num_targets} and --kept-queries {self.kept_queries} cannot be negative")
        if self.precision not in DTYPES:
            raise ValueError(f"--precision {self.precision!r} is unknown; choose from: {', '.join(DTYPES)}")


def check_device(name: str) -> None:
    """Raises ValueError unless this is "cpu", or a GPU ("cuda", "cuda:1") that is there."""
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise ValueError(f"--device {name!r} is unknown; choose cpu, cuda or cuda:INDEX")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs")


def pictures(workload: Workload) -> list[NDArray[np.uint8]]:
    """(H, W, 3) uint8 each: smooth blobs with noise on top, neither constant nor pure noise."""
    return [_picture(workload.size, seed) for seed in range(workload.batch_size)]


def training_samples(workload: Workload, num_classes: int) -> list[dict[str, Any]]:
    """Samples as a dataset mapper gives them: `image` (3, H, W) uint8, and ellipses as `instances`."""
    samples = []
    for seed in range(workload.batch_size):
        random = torch.Generator().manual_seed(seed)
        instances = Instances(workload.size)
        instances.gt_classes = torch.randint(0, num_classes, (workload.num_targets,), generator=random)
        instances.gt_masks = _ellipses(workload.num_targets, workload.size, random)
        image = torch.from_numpy(_picture(workload.size, seed)).permute(2, 0, 1).contiguous()
        samples.append({"file_name": f"picture_{seed}", "image": image, "instances": instances})
    return samples


def _picture(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 9, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0]
    noisy = (255 * (smooth + 0.05 * torch.randn(smooth.shape, generator=random))).clamp(0, 255)
    return noisy.byte().permute(1, 2, 0).contiguous().numpy()


def _ellipses(count: int, size: tuple[int, int], random: torch.Generator) -> Tensor:
    """(N, H, W) bool; centers anywhere, half axes of 1/40 to 1/4 of the sides."""
    center_y, center_x, axis_y, axis_x = torch.rand(4, count, 1, 1, generator=random)
    axis_y, axis_x = (0.025 + 0.225 * axis for axis in (axis_y, axis_x))
    y = (torch.arange(size[0]) + 0.5).view(-1, 1) / size[0]
    x = (torch.arange(size[1]) + 0.5) / size[1]
    masks: Tensor = ((y - center_y) / axis_y) ** 2 + ((x - center_x) / axis_x) ** 2 < 1
    return masks
