#!/usr/bin/env python3
"""How far half precision moves the outputs of R50 COCO panoptic, with the pixel decoder in it and kept in float32.

    python -m benchmarks.precision

The weights are those of the golden tests: noise that keeps the size of what passes through. Such queries are harder to
keep than trained ones, since a pixel that changes sides changes what they attend to. Figures are the norm of the
difference from float32 relative to the norm of the float32 result, median (range) over pictures.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from statistics import median

import torch
from torch import Tensor

from mask2former import MaskFormer
from mask2former.config import load_config
from mask2former.modeling.masks import MaskLogits
from tests.golden import CONFIGS, fill_deterministically, network_input

CONFIG_FILE = CONFIGS / "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
SIZE = (256, 320)
OUTPUTS = ("per-pixel embeddings", "class logits", "mask logits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = MaskFormer(load_config(CONFIG_FILE, ["MODEL.DEVICE", args.device])).to(args.device).eval()
    fill_deterministically(model)
    pictures = [network_input(seed, SIZE, SIZE).to(args.device) for seed in range(args.pictures)]
    exact = [outputs(model, picture, None) for picture in pictures]
    print(f"{'autocast':<16} {'FORCE_FP32':<10} " + " ".join(f"{name:<24}" for name in OUTPUTS))
    for dtype in (torch.bfloat16, torch.float16):
        for force_fp32 in (True, False):
            model.sem_seg_head.pixel_decoder.force_fp32 = force_fp32
            found = [outputs(model, picture, dtype) for picture in pictures]
            errors = [[deviation(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(found, exact, strict=True)]
            cells = [f"{median(e):.4f} ({min(e):.4f} - {max(e):.4f})" for e in zip(*errors, strict=True)]
            print(f"{dtype!s:<16} {force_fp32!s:<10} " + " ".join(f"{cell:<24}" for cell in cells))


@torch.inference_mode()
def outputs(model: MaskFormer, picture: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Per-pixel embeddings, class logits and mask logits, in the order of `OUTPUTS`."""
    with nullcontext() if dtype is None else torch.autocast(picture.device.type, dtype=dtype):
        class_logits, masks = model.sem_seg_head.predict(model.backbone(picture))
    return [
        masks.features.float(),
        class_logits.float(),
        MaskLogits(masks.embeddings.float(), masks.features.float()).dense(),
    ]


def deviation(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


if __name__ == "__main__":
    main()
