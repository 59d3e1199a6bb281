"""What loading did to the tensors of a file and of a model, as lists for programs and as one table for the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tabulate import tabulate

from mask2former.modeling.weight_names import part

__all__ = ["LoadReport", "examples", "grouped"]

_NUM_EXAMPLES = 3
#: Lists in the order of the table's columns, and what they mean.
_MEANINGS = {
    "loaded": "",
    "renamed": "",
    "resized": "fitted to another window, picture or number of queries",
    "fresh": "not in the file, start as initialized",
    "reset": "of another number of classes, start as initialized",
    "unused": "in the file, not used",
}


@dataclass
class LoadReport:
    """Names in the model's terms.

    Attributes:
        loaded: got values from the file, which is also true of `renamed` and `resized`.
        renamed: called otherwise in the file, apart from a missing beginning.
        resized: had another size in the file.
        fresh: in the model only.
        reset: class head of another size.
        unused: in the file only.
    """

    loaded: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A table of counts with one row for each part of the model, then a few names of what is not simply loaded."""
        lists: dict[str, list[str]] = {name: getattr(self, name) for name in _MEANINGS}
        counts = {name: Counter(map(part, names)) for name, names in lists.items()}
        columns = [name for name, names in lists.items() if names]
        parts = dict.fromkeys(key for count in counts.values() for key in count)
        rows = [[key, *(counts[name][key] or "" for name in columns)] for key in parts]
        lines = [tabulate(rows, headers=["part", *columns], tablefmt="simple")]
        for name, meaning in _MEANINGS.items():
            if lists[name] and meaning:
                lines.append(f"{name} ({meaning}): {examples(lists[name])}")
        return "\n".join(lines)


def examples(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - _NUM_EXAMPLES
    return ", ".join(names[:_NUM_EXAMPLES]) + (f" and {rest} more" if rest > 0 else "")


def grouped(names: Iterable[str]) -> str:
    """`backbone (3), sem_seg_head.predictor (12)`; at most eight groups are named."""
    counts = Counter(map(part, names))
    shown = ", ".join(f"{key} ({count})" for key, count in list(counts.items())[:8])
    return shown + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")
