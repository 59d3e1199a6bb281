#!/usr/bin/env python
"""Panoptic quality of semantic segmentation results: every class in a picture counts as one segment.

Example:
    tools/evaluate_pq_for_semantic_segmentation.py --dataset-name ade20k_sem_seg_val \\
        --json-file output/inference/sem_seg_predictions.json
"""

from __future__ import annotations

import argparse
import sys

from mask2former.evaluation.semantic_pq import evaluate_semantic_pq


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset-name",
        required=True,
        help="ade20k_sem_seg_val, coco_2017_test_stuff_10k_sem_seg, ade20k_full_sem_seg_val, or any other registered "
        "dataset with semantic labels; under $DETECTRON2_DATASETS (default: datasets)",
    )
    parser.add_argument("--json-file", required=True, help="sem_seg_predictions.json of an evaluation")
    args = parser.parse_args(arguments)
    try:
        result = evaluate_semantic_pq(args.dataset_name, args.json_file)
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate_pq_for_semantic_segmentation.py: error: {error}")
    print(result.table())


if __name__ == "__main__":
    main()
