#!/usr/bin/env python3
"""Metrics of an exported model on a data set: what an export in lower precision costs.

    tools/evaluate_exported.py exported/int8 --config-file configs/digits/panoptic.yaml --opts OUTPUT_DIR output/int8

A model exported with --task raw is evaluated on all tasks that the config has on, any other on its own.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mask2former.config import load_config
from mask2former.deploy.export.evaluation import evaluate_exported


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that tools/export_model.py wrote")
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(arguments)
    try:
        evaluate_exported(load_config(args.config_file, args.opts), args.folder)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error  # a KeyError would print it in quotes
        print(f"evaluate_exported.py: error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
