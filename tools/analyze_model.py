#!/usr/bin/env python3
"""What a model costs: FLOPs (one multiply-add is one), activations, parameters, structure.

    tools/analyze_model.py --tasks flop parameter --input-size 800 1066 \\
        --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml

Without --input-size and --use-fixed-input-size, FLOPs and activations are averaged over the first pictures of
DATASETS.TEST, which must be on the disk. Counted is all that the model does, from the picture to results of its size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from statistics import fmean, pstdev

from fvcore.nn import parameter_count_table
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from mask2former.analysis import Costs, count_costs, inputs_to_count
from mask2former.engine import CfgNode, Trainer, argument_parser, config_for_run

TASKS = ("flop", "activation", "parameter", "structure")


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    # What weights are in the model changes no count of the network, so none are downloaded.
    cfg = config_for_run(args.config_file, ["MODEL.TIMM.PRETRAINED", "False", *args.opts])
    model = Trainer.build_model(cfg).eval()
    if {"flop", "activation"} & set(args.tasks):
        size = args.input_size or (crop_size(cfg) if args.use_fixed_input_size else None)
        costs = measure(cfg, model, args.num_inputs, size)
        if "flop" in args.tasks:
            print(parts_table(costs[-1]))
            print(operators_table("GFLOPs", [picture.flops_by_operator() for picture in costs], 1e9))
        if "activation" in args.tasks:
            print(operators_table("million activations", [c.activations_by_operator() for c in costs], 1e6))
    if "parameter" in args.tasks:
        print("Parameters:\n" + parameter_count_table(model, max_depth=5))
    if "structure" in args.tasks:
        print(f"Structure:\n{model}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(epilog=__doc__)
    parser.add_argument("--tasks", choices=TASKS, nargs="+", required=True)
    parser.add_argument("-n", "--num-inputs", type=int, default=100, help="pictures to average over (default: 100)")
    parser.add_argument("--use-fixed-input-size", action="store_true", help="one square picture of INPUT.CROP.SIZE[0]")
    parser.add_argument("--input-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="one picture of that size")
    args = parser.parse_args(arguments)
    if args.num_inputs < 1:
        parser.error(f"--num-inputs {args.num_inputs} must be at least 1")
    return args


def crop_size(cfg: CfgNode) -> tuple[int, int]:
    crop = cfg.INPUT.CROP
    if crop.TYPE.startswith("relative"):
        raise ValueError(
            f"--use-fixed-input-size takes the side INPUT.CROP.SIZE[0]={crop.SIZE[0]}, which is a share of the "
            f"picture and no number of pixels (INPUT.CROP.TYPE={crop.TYPE!r}): give --input-size HEIGHT WIDTH instead"
        )
    return int(crop.SIZE[0]), int(crop.SIZE[0])


def measure(cfg: CfgNode, model: nn.Module, num_inputs: int, size: tuple[int, int] | None) -> list[Costs]:
    inputs: Iterable[list[dict]] = inputs_to_count(cfg, num_inputs, size)
    return [count_costs(model, batch) for batch in tqdm(inputs, total=1 if size else num_inputs, disable=None)]


def parts_table(costs: Costs) -> str:
    names = {"": "mask logits and post-processing"}
    rows = [(names.get(name, name), f"{count / 1e9:.2f}") for name, count in costs.flops_by_part().items()]
    return tabulate(rows, headers=("part (last picture)", "GFLOPs"), tablefmt="simple") + "\n"


def operators_table(unit: str, pictures: list[dict[str, int]], scale: float) -> str:
    operators = list(dict.fromkeys(name for picture in pictures for name in picture))
    rows = [(name, f"{fmean(picture.get(name, 0) for picture in pictures) / scale:.2f}") for name in operators]
    totals = [sum(picture.values()) / scale for picture in pictures]
    spread = f" ± {pstdev(totals):.2f}" if len(totals) > 1 else ""
    rows.append((f"total of {len(totals)} picture(s)", f"{fmean(totals):.2f}{spread}"))
    return tabulate(rows, headers=("operator", f"{unit}, mean"), tablefmt="simple") + "\n"


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"analyze_model.py: error: {error.args[0] if isinstance(error, KeyError) else error}")
