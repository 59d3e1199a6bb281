#!/usr/bin/env python
"""Write a ResNet of torchvision as a backbone file of Detectron2.

MODEL.WEIGHTS takes torchvision's file as it is, too; this is for Detectron2 and for the original Mask2Former.

Example:
    wget https://download.pytorch.org/models/resnet101-63fe2227.pth
    tools/convert-torchvision-to-d2.py resnet101-63fe2227.pth R-101.pkl

To be used with INPUT.FORMAT RGB, MODEL.RESNETS.STRIDE_IN_1X1 False, MODEL.PIXEL_MEAN [123.675, 116.280, 103.530] and
MODEL.PIXEL_STD [58.395, 57.120, 57.375].
"""

from __future__ import annotations

import argparse
import sys

from mask2former.modeling.conversion import convert_torchvision


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN.pth", help="of torchvision or timm")
    parser.add_argument("output", metavar="OUT.pkl")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.pkl if it exists")
    args = parser.parse_args(arguments)
    try:
        names = convert_torchvision(args.input, args.output, overwrite=args.overwrite)
    except (OSError, ValueError) as error:
        sys.exit(f"convert-torchvision-to-d2.py: error: {error}")
    for name, new_name in names.items():
        print(f"{name} -> {new_name}")
    print(f"{args.output}: {len(names)} tensors; the classifier is left out")


if __name__ == "__main__":
    main()
