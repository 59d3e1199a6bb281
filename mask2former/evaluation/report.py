"""Results of an evaluation: a table for people, a JSON file for programs."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from mask2former.files import write_atomically

__all__ = ["report_results", "results_table"]

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # dataset -> task -> metric -> value


def results_table(results: Results) -> str:
    """One line per dataset and task with its summary metrics (per-class figures are left to the JSON file)."""
    lines = []
    for dataset, tasks in results.items():
        for task, metrics in tasks.items():
            summary = "  ".join(f"{name} {value:.2f}" for name, value in metrics.items() if "-" not in name)
            lines.append((dataset, task, summary))
    return tabulate(lines, headers=("dataset", "task", "result"), tablefmt="simple")


def report_results(results: Results, output_folder: str) -> None:
    """Log the table and write `<output_folder>/metrics.json`; a metric that cannot be computed is null there."""
    path = os.path.join(output_folder, "metrics.json")
    os.makedirs(output_folder, exist_ok=True)
    content = json.dumps(_without_nan(results), indent=2)
    write_atomically(path, lambda file: file.write(content.encode()))
    logging.getLogger(__name__).info(f"Results (all figures in {path}):\n{results_table(results)}")


def _without_nan(value: Any) -> Any:
    # NaN is no JSON: strict readers refuse the whole file.
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if math.isnan(value) else float(value)
