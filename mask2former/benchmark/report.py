"""The figures of a benchmark and their table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["INFERENCE_STAGES", "TRAINING_STAGES", "Figures", "Report", "Statistic", "report_table"]

#: In order; "network" is the sum of the three that follow it and of what holds them together.
INFERENCE_STAGES = (
    "pre-processing",
    "network",
    "backbone",
    "pixel decoder",
    "decoder",
    "post-processing",
    "total",
)
NETWORK_STAGES = ("backbone", "pixel decoder", "decoder", "rest of the network")
TRAINING_STAGES = ("forward", "loss", "backward", "optimizer", "total")


@dataclass(frozen=True)
class Statistic:
    median: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: list[float]) -> Statistic:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Figures:
    """What was measured of one side.

    Attributes:
        milliseconds: stage -> time of one call with the whole batch.
        images_per_second: of whole calls.
        memory_mib: most that a call needed beyond the model itself; None where it cannot be measured. In training that
            includes gradients and the optimizer's state.
        parameters: of the model, in millions.
        gflops: billions of multiply-adds of the network for one picture, forward.
    """

    milliseconds: dict[str, Statistic]
    images_per_second: Statistic
    memory_mib: float | None
    parameters: float
    gflops: float

    @classmethod
    def of(
        cls,
        calls: list[dict[str, float]],
        *,
        stages: tuple[str, ...],
        batch_size: int,
        memory_mib: float | None,
        costs: tuple[int, int],
    ) -> Figures:
        """Args:
        calls: seconds of the stages of every call.
        costs: parameters, and multiply-adds of the whole batch.
        """
        for seconds in calls:
            seconds["network"] = sum(seconds.get(stage, 0.0) for stage in NETWORK_STAGES)
        return cls(
            # A stage is missing when a compiled network hides its parts.
            {s: Statistic.of([1000 * seconds[s] for seconds in calls]) for s in stages if s in calls[0]},
            Statistic.of([batch_size / seconds["total"] for seconds in calls]),
            memory_mib,
            costs[0] / 1e6,
            costs[1] / 1e9 / batch_size,
        )


@dataclass
class Report:
    """What `benchmark` measured of one workload.

    Attributes:
        settings: what the figures depend on.
        sides: "ours", and "transformers" unless ours was measured alone.
        deviation: largest difference between the two sides' outputs, relative to the largest output of transformers.
        why_alone: why transformers was not measured; empty if it was.
    """

    settings: dict[str, Any]
    sides: dict[str, Figures] = field(default_factory=dict)
    deviation: dict[str, float] = field(default_factory=dict)
    why_alone: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_table(report: Report) -> str:
    """A line for every figure: median and range of each side, and how many times better ours is."""
    settings = report.settings
    unit = "processor ms" if settings["processor_time"] else "ms"
    title = f"{unit} per {'step' if settings['training'] else 'call'}, {settings['batch_size']} picture(s)"
    if settings["training"]:
        title += f", {settings['num_targets']} targets each"
    columns = "".join(f"{name:>30}" for name in report.sides)
    lines = [f"{title:<44}{columns}" + ("   ratio" if len(report.sides) > 1 else "")]
    for name, values, ratio in _rows(list(report.sides.values())):
        cells = "".join(f"{_cell(value):>30}" for value in values)
        lines.append(f"{name:<44}{cells}" + ("" if ratio is None else f"{ratio:8.2f}"))
    if report.why_alone:
        lines.append(f"transformers was left out: {report.why_alone}")
    if report.deviation:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in report.deviation.items())
        lines.append(f"largest relative difference of {differences}")
    return "\n".join(lines)


def _rows(sides: list[Figures]) -> Iterator[tuple[str, list[Statistic | float | None], float | None]]:
    """Name, values of the sides, and ratio (None if there is none)."""
    for stage in sides[0].milliseconds:
        times = [side.milliseconds.get(stage) for side in sides]
        is_part = stage in NETWORK_STAGES
        yield ("  " if is_part else "") + stage, list(times), _ratio([time.median if time else None for time in times])
    rates = [side.images_per_second for side in sides]
    yield "images/s", list(rates), _ratio([1 / rate.median for rate in rates])
    memory = [side.memory_mib for side in sides]
    yield "peak memory beyond the model, MiB", list(memory), _ratio(memory)
    yield "parameters, M", [side.parameters for side in sides], None
    yield "network GFLOPs per picture, forward", [side.gflops for side in sides], None


def _ratio(values: list[float | None]) -> float | None:
    if len(values) < 2 or values[0] is None or values[1] is None:
        return None
    return values[1] / max(values[0], 1e-9)


def _cell(value: Statistic | float | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.1f}"
    digits = 3 if value.largest < 10 else 1
    return f"{value.median:.{digits}f} ({value.smallest:.{digits}f} - {value.largest:.{digits}f})"
