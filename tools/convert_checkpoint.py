#!/usr/bin/env python
"""Write weights of any kind as any other; the state of an optimizer, if there is one, is left out.

INPUT is anything that MODEL.WEIGHTS takes: a published .pkl, a .pth, .safetensors, a folder or file of transformers
(hf:/path), a ResNet of torchvision or timm, a Swin of its authors or timm. OUTPUT is a .pkl, .pth or .safetensors file,
or a transformers folder (hf:/path, or a name without suffix), which needs the config of the model.

Examples:
    tools/convert_checkpoint.py output/model_final.pth weights/model.safetensors --dtype float16
    tools/convert_checkpoint.py model_final_94dc52.pkl hf:exported \\
        --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml
"""

from __future__ import annotations

import argparse
import sys

from mask2former.config import load_config
from mask2former.modeling.conversion import DTYPES, convert_checkpoint


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--config-file", help="of the model; names and shapes of all tensors are compared with it")
    parser.add_argument("--dtype", choices=DTYPES, help="of floating tensors; default: as in the input")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of the config")
    args = parser.parse_args(arguments)
    if args.opts and not args.config_file:
        parser.error("--opts without --config-file has no effect")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        cfg = load_config(args.config_file, args.opts) if args.config_file else None
        names = convert_checkpoint(
            args.input, args.output, cfg=cfg, dtype=DTYPES.get(args.dtype), overwrite=args.overwrite
        )
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"convert_checkpoint.py: error: {error.args[0] if isinstance(error, KeyError) else error}")
    print(f"{args.output}: {len(names)} tensors")


if __name__ == "__main__":
    main()
