"""The figures of a benchmark as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from mask2former.benchmark.report import Report

__all__ = ["check_chart_file", "save_chart"]

_COLORS = {
    "pre-processing": "#9aa5b1",
    "network": "#1f5a94",  # drawn where its parts are unknown
    "backbone": "#1f5a94",
    "pixel decoder": "#3f8fc4",
    "decoder": "#8cc3e3",
    "post-processing": "#e0953c",
    "forward": "#1f5a94",
    "loss": "#3f8fc4",
    "backward": "#8cc3e3",
    "optimizer": "#e0953c",
}


def check_chart_file(file: str | Path) -> None:
    """Raises ValueError where matplotlib knows no such kind of file: better now than after the measurements."""
    kinds = Figure().canvas.get_supported_filetypes()
    if Path(file).suffix[1:] not in kinds:
        raise ValueError(f"--chart {str(file)!r} must end in one of: {', '.join(f'.{kind}' for kind in sorted(kinds))}")


def save_chart(reports: Sequence[Report], file: str | Path, title: str) -> None:
    """One bar per workload and side, its stages one after the other, its total and range written behind it.

    Args:
        reports: all of inference or all of training.
        file: what it ends in says the kind, see `check_chart_file`.
    """
    bars = [(report, name) for report in reports for name in report.sides]
    figure = Figure(figsize=(9, 1.3 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    drawn: dict[str, Artist] = {}
    for position, (report, name) in enumerate(bars):
        times = report.sides[name].milliseconds
        left = 0.0
        for stage, color in _COLORS.items():
            if stage in times and not (stage == "network" and "backbone" in times):
                drawn[stage] = axes.barh(position, times[stage].median, left=left, color=color)[0]
                left += times[stage].median
        total = times["total"]
        text = f" {total.median:.0f} ms ({total.smallest:.0f} - {total.largest:.0f})"
        axes.text(left, position, text, va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [_label(report, name) for report, name in bars])
    axes.invert_yaxis()
    axes.set_xmargin(0.25)
    unit = "milliseconds of processor time" if reports[0].settings["processor_time"] else "milliseconds"
    axes.set_xlabel(f"{unit}, median (range)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        list(drawn.values()), list(drawn), ncols=len(drawn), loc="outside lower center", frameon=False, fontsize=8
    )
    figure.savefig(file, dpi=110)


def _label(report: Report, name: str) -> str:
    settings = report.settings
    details = f"batch {settings['batch_size']}, {settings['precision']}"
    if settings["training"]:
        details += f", {settings['num_targets']} targets"
    return f"{name}\n{details}"
