#!/usr/bin/env python
"""Boundary AP (arXiv:2103.16562) of a file of instance segmentation results in COCO's format.

Example:
    tools/evaluate_coco_boundary_ap.py --gt-json-file datasets/coco/annotations/instances_val2017.json \\
        --dt-json-file output/inference/coco_instances_results.json
"""

from __future__ import annotations

import argparse
import sys

from mask2former.evaluation.average_precision import DILATION_RATIO, TASKS
from mask2former.evaluation.result_files import evaluate_result_file


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gt-json-file", required=True, help="COCO annotations")
    parser.add_argument("--dt-json-file", required=True, help="results: coco_instances_results.json of an evaluation")
    parser.add_argument("--iou-type", default="boundary", choices=TASKS, help="what is compared (default: boundary)")
    parser.add_argument(
        "--dilation-ratio",
        type=float,
        default=DILATION_RATIO,
        help="thickness of a boundary relative to the image's diagonal (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    try:
        judged = evaluate_result_file(
            args.gt_json_file, args.dt_json_file, args.iou_type, dilation_ratio=args.dilation_ratio
        )
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate_coco_boundary_ap.py: error: {error}")
    print(judged.summary)


if __name__ == "__main__":
    main()
