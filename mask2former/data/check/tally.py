"""Adds up what was found in all pictures; its memory follows the number of classes, not of pictures."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from mask2former.data.check.problems import Findings, Form, Kind

__all__ = ["ClassTotals", "KindTotal", "Tally", "VoidTotal"]

NUM_EXAMPLES = 3


@dataclass
class KindTotal:
    """All problems of one kind."""

    count: int = 0
    num_pictures: int = 0
    examples: list[str] = field(default_factory=list)  # of the first pictures


@dataclass
class ClassTotals:
    """How often each class occurs, by contiguous id."""

    pictures: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    num_crowds: int = 0


class WorstPicture(NamedTuple):
    """A picture with much void."""

    share: float
    name: str


@dataclass
class VoidTotal:
    """Shares of void pixels, in [0, 1]."""

    total: float = 0.0
    num_pictures: int = 0
    worst: list[WorstPicture] = field(default_factory=list)  # in descending order

    @property
    def mean(self) -> float:
        return self.total / self.num_pictures


@dataclass
class Tally:
    """The sum of all findings so far."""

    num_pictures: int = 0
    num_readable: int = 0
    smallest: tuple[int, int] | None = None  # (height, width) of the picture with the fewest pixels
    largest: tuple[int, int] | None = None
    problems: dict[Kind, KindTotal] = field(default_factory=dict)
    classes: dict[Form, ClassTotals] = field(default_factory=dict)
    void: dict[Form, VoidTotal] = field(default_factory=dict)

    def add(self, findings: Findings) -> None:
        self.num_pictures += findings.is_picture
        if findings.size is not None:
            self.num_readable += 1
            sizes = [size for size in (self.smallest, self.largest, findings.size) if size is not None]
            self.smallest = min(sizes, key=_num_pixels)
            self.largest = max(sizes, key=_num_pixels)
        for kind, problem in findings.problems.items():
            total = self.problems.setdefault(kind, KindTotal())
            total.count += problem.count
            total.num_pictures += 1
            if len(total.examples) < NUM_EXAMPLES:
                total.examples.append(problem.example)
        for form, counts in findings.classes.items():
            totals = self.classes.setdefault(form, ClassTotals())
            totals.pictures.update(counts.segments.keys())
            totals.segments.update(counts.segments)
            totals.pixels.update(counts.pixels)
            totals.num_crowds += counts.num_crowds
        for form, share in findings.void.items():
            void = self.void.setdefault(form, VoidTotal())
            void.total += share
            void.num_pictures += 1
            candidates = [*void.worst, WorstPicture(share, findings.name)]
            void.worst = heapq.nlargest(NUM_EXAMPLES, candidates, key=lambda picture: picture.share)


def _num_pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]
