#!/usr/bin/env python
"""Write the weights of a checkpoint as half-precision safetensors: what one ships.

Example:
    tools/export_weights.py output/digits_panoptic/model_final.pth weights/digits_panoptic.safetensors
"""

from __future__ import annotations

import argparse
import sys

from mask2former.modeling.weight_files import export_weights, read_weight_file


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="any file that MODEL.WEIGHTS takes")
    parser.add_argument("output", help="the .safetensors file to write")
    args = parser.parse_args(arguments)
    try:
        export_weights(read_weight_file(args.checkpoint).tensors, args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"export_weights.py: error: {error}")


if __name__ == "__main__":
    main()
