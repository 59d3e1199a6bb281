#!/usr/bin/env python3
"""Draws a result file of an evaluation: image, truth and prediction side by side.

    tools/visualize_json_results.py --input output/inference/coco_instances_results.json \\
        --dataset digits_panoptic_val --output drawings

--input takes coco_instances_results.json, sem_seg_predictions.json, and the predictions.json of a panoptic evaluation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from mask2former.data.drawing import spread
from mask2former.deploy.pictures import output_paths, write_picture
from mask2former.evaluation.result_pictures import ResultPictures


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    results = ResultPictures(args.input, args.dataset)
    if args.conf_threshold is not None and results.form != "instance":
        print(f"--conf-threshold has no effect: {results.form} results have no scores", file=sys.stderr)
    threshold = 0.5 if args.conf_threshold is None else args.conf_threshold
    records = spread(results.records, args.num or len(results.records))
    paths = output_paths([Path(record["file_name"]) for record in records], args.output)
    for record, path in zip(tqdm(records, unit="picture", disable=None), paths, strict=True):
        write_picture(path, results.draw(record, threshold))
    print(f"{len(paths)} pictures in {args.output}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, metavar="FILE", help="JSON file of results")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="what lies in it is not overwritten")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="registered data set that was evaluated")
    parser.add_argument("--conf-threshold", type=float, help="leave out instances of a lower score (default: 0.5)")
    parser.add_argument("--num", type=int, metavar="N", help="draw N pictures, spread over all (default: all)")
    args = parser.parse_args(arguments)
    if args.num is not None and args.num < 1:
        parser.error(f"--num must be 1 or more, got {args.num}")
    return args


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"visualize_json_results.py: error: {error}")
