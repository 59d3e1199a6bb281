#!/usr/bin/env python
"""Train or evaluate a model.

Examples:
    train_net.py --config-file configs/digits/panoptic.yaml
    train_net.py --config-file configs/digits/panoptic.yaml --eval-only MODEL.WEIGHTS model_final.pth
    torchrun --nproc-per-node 2 train_net.py --config-file configs/digits/panoptic.yaml --resume
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mask2former.engine import CfgNode, Trainer, argument_parser, config_for_run, evaluate, launch, setup_run


def main(cfg: CfgNode, args: argparse.Namespace) -> Any:
    """One process of the run."""
    setup_run(cfg, args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = argument_parser(__doc__).parse_args()
    try:
        config = config_for_run(arguments.config_file, arguments.opts)
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"train_net.py: error: {error.args[0] if isinstance(error, KeyError) else error}")
    try:
        launch(main, config, arguments)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        sys.exit(f"train_net.py: error: {error}")
