#!/usr/bin/env python
"""Train or evaluate a model.

Examples:
    train_net.py --config-file configs/digits/panoptic.yaml
    train_net.py --config-file configs/digits/panoptic.yaml --eval-only MODEL.WEIGHTS model_final.pth
    torchrun --nproc-per-node 2 train_net.py --config-file configs/digits/panoptic.yaml --resume
"""

from __future__ import annotations

import argparse
from typing import Any

from mask2former.engine import (
    CfgNode,
    argument_parser,
    config_for_run,
    launch,
    prepare_evaluation,
    prepare_training,
    setup_run,
    short_errors,
)


def main(cfg: CfgNode, args: argparse.Namespace) -> Any:
    """One process of the run."""
    prepare = prepare_evaluation if args.eval_only else prepare_training
    with short_errors():
        setup_run(cfg, args)
        run = prepare(cfg, resume=args.resume)
    return run()


if __name__ == "__main__":
    arguments = argument_parser(__doc__).parse_args()
    with short_errors():
        config = config_for_run(arguments.config_file, arguments.opts)
    launch(main, config, arguments)
