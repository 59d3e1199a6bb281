#!/usr/bin/env python
"""Train the backbone of a config on single digits, the embedded stand-in for ImageNet weights.

Example:
    tools/pretrain_digits_backbone.py --config-file configs/digits/panoptic.yaml --output output/digits/backbone.pth
    train_net.py --config-file configs/digits/panoptic.yaml MODEL.WEIGHTS output/digits/backbone.pth
"""

from __future__ import annotations

import argparse
import sys

from detectron2.utils.logger import setup_logger

from mask2former.engine.pretraining import PretrainingSettings, pretrain_backbone
from mask2former.engine.setup import config_for_run


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    default = PretrainingSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="its backbone is trained")
    parser.add_argument("--output", required=True, help="weights to write, for MODEL.WEIGHTS")
    parser.add_argument("--steps", type=int, default=default.num_steps)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--crop-size", type=int, default=default.crop_size, help="pixels a side")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--workers", type=int, default=default.num_workers, help="processes that draw crops")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        cfg = config_for_run(args.config_file, args.opts)
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"pretrain_digits_backbone.py: error: {error.args[0] if isinstance(error, KeyError) else error}")
    setup_logger(name="mask2former")
    settings = PretrainingSettings(
        num_steps=args.steps,
        batch_size=args.batch_size,
        crop_size=args.crop_size,
        learning_rate=args.learning_rate,
        num_workers=args.workers,
        seed=args.seed,
    )
    accuracy = pretrain_backbone(cfg, args.output, settings)
    print(f"{args.output}: {accuracy:.1%} of unseen crops are classified correctly")


if __name__ == "__main__":
    main()
