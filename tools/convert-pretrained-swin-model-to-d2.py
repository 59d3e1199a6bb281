#!/usr/bin/env python
"""Write an ImageNet file of Swin's authors (1k or 22k) as a backbone file of Detectron2.

MODEL.WEIGHTS takes that file as it is, too; this is for Detectron2 and for the original Mask2Former.

Example:
    wget https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth
    tools/convert-pretrained-swin-model-to-d2.py swin_tiny_patch4_window7_224.pth swin_tiny_patch4_window7_224.pkl
"""

from __future__ import annotations

import argparse
import sys

from mask2former.modeling.conversion import convert_swin


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN.pth", help='with the entry "model"')
    parser.add_argument("output", metavar="OUT.pkl")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.pkl if it exists")
    args = parser.parse_args(arguments)
    try:
        num_tensors = convert_swin(args.input, args.output, overwrite=args.overwrite)
    except (OSError, ValueError) as error:
        sys.exit(f"convert-pretrained-swin-model-to-d2.py: error: {error}")
    print(f"{args.output}: {num_tensors} tensors")


if __name__ == "__main__":
    main()
