"""The figures of a benchmark and their table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["STAGES", "Report", "Statistic", "report_table"]

STAGES = ("pre-processing", "backbone", "pixel decoder", "decoder", "post-processing", "total")


@dataclass(frozen=True)
class Statistic:
    median: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: list[float]) -> Statistic:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Report:
    """What `benchmark` measured.

    Attributes:
        settings: what the figures depend on.
        milliseconds: side -> stage -> time of one call with the whole batch.
        memory_mib: side -> most that a call needed beyond what was there before it; empty where it cannot be measured.
        deviation: largest difference between the two sides' class and mask logits, relative to the largest logit.
        why_alone: why transformers was not measured; empty if it was.
    """

    settings: dict[str, Any]
    milliseconds: dict[str, dict[str, Statistic]] = field(default_factory=dict)
    memory_mib: dict[str, Statistic] = field(default_factory=dict)
    deviation: dict[str, float] = field(default_factory=dict)
    why_alone: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_table(report: Report) -> str:
    """A line for every stage: median and range of each side, and how many times faster ours is."""
    names = list(report.milliseconds)
    unit = f"ms per call, {report.settings['batch_size']} picture(s)"
    lines = [f"{unit:<32}" + "".join(f"{name:>28}" for name in names) + ("   ratio" if len(names) > 1 else "")]
    rows = {stage: [report.milliseconds[name][stage] for name in names] for stage in STAGES}
    if len(report.memory_mib) == len(names):
        rows["memory (MiB)"] = [report.memory_mib[name] for name in names]
    for title, figures in rows.items():
        cells = [f"{value.median:10.1f} ({value.smallest:.1f} - {value.largest:.1f})" for value in figures]
        ratio = f"{figures[1].median / max(figures[0].median, 1e-9):8.2f}" if len(figures) > 1 else ""
        lines.append(f"{title:<32}" + "".join(f"{cell:>28}" for cell in cells) + ratio)
    return "\n".join(lines)
