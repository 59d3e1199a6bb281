"""The page: what a person needs to know about a data set, in at most 60 lines."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from tabulate import tabulate

from mask2former.data.check.problems import Form, Kind
from mask2former.data.check.run import CheckedDataset
from mask2former.data.check.tally import NUM_EXAMPLES, ClassTotals, KindTotal

__all__ = ["MAX_LINES", "page"]

MAX_LINES = 60
_WIDTH = 200  # characters of a line
_MIN_ROWS = 2  # of a table of classes
_NUM_NAMED = 12  # classes that never occur
_TITLES: dict[Form, str] = {"panoptic": "panoptic segments", "instance": "objects", "semantic": "semantic labels"}


def page(checked: CheckedDataset, *, all_classes: bool = False) -> str:
    """
    Args:
        all_classes: list every class, however long the page becomes.
    """
    head = _head(checked)
    errors, warnings = (
        {kind: total for kind, total in checked.tally.problems.items() if kind.is_error is is_error}
        for is_error in (True, False)
    )
    conclusion = _conclusion(errors, warnings)
    # Every table has two lines of head, two of notes and an empty one.
    num_tables = len(checked.tally.classes)
    num_free = MAX_LINES - len(head) - len(conclusion) - num_tables * (5 + _MIN_ROWS)
    for num_examples in (NUM_EXAMPLES, 2, 1, 0):
        problems = _problems(errors, warnings, num_examples)
        if len(problems) <= num_free:
            break
    num_rows = _MIN_ROWS + max(0, num_free - len(problems)) // max(1, num_tables)
    tables = [
        line
        for form, totals in checked.tally.classes.items()
        for line in _class_table(checked, form, totals, None if all_classes else num_rows)
    ]
    return "\n".join(_cut(line) for line in [*head, *problems, *tables, *conclusion]) + "\n"


def _head(checked: CheckedDataset) -> list[str]:
    tally = checked.tally
    noun = "videos" if checked.records and "file_names" in checked.records[0] else "pictures"
    looked_at = f"{checked.num_checked} of {len(checked.records)} {noun}"
    lines = [f"Data set {checked.name}: files of {looked_at} looked at"]
    if tally.smallest is not None and tally.largest is not None:
        frames = f"{tally.num_readable} frames" if noun == "videos" else f"{tally.num_readable} pictures"
        lines.append(f"  {frames} of {_size(tally.smallest)} to {_size(tally.largest)} pixels (height x width)")
    for form, totals in tally.classes.items():
        if form != "semantic":
            number = totals.segments.total()
            lines.append(
                f"  {number} {_TITLES[form]}, {number / max(1, tally.num_pictures):.1f} per picture, "
                f"{totals.num_crowds} of them crowds"
            )
    for form, void in tally.void.items():
        worst = ", ".join(f"{picture.share:.1%} {picture.name}" for picture in void.worst if picture.share > 0)
        lines.append(f"  void in {form} pictures: {void.mean:.2%} on average" + (f"; most: {worst}" if worst else ""))
    return [*lines, ""]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _problems(errors: Mapping[Kind, KindTotal], warnings: Mapping[Kind, KindTotal], num_examples: int) -> list[str]:
    """Each kind with its count and its first examples."""
    lines = []
    for title, problems in (("ERRORS", errors), ("WARNINGS", warnings)):
        if problems:
            lines.append(title)
        for kind, total in problems.items():
            spread = f", in {total.num_pictures} pictures" if 1 < total.num_pictures < total.count else ""
            lines.append(f"  {kind.title}: {total.count}{spread}")
            lines += [f"      {' '.join(example.split())}" for example in total.examples[:num_examples]]
        if problems:
            lines.append("")
    return lines


def _class_table(checked: CheckedDataset, form: Form, totals: ClassTotals, max_rows: int | None) -> list[str]:
    """A table of the classes that occur, the frequent ones first, and a line for those that do not."""
    names = checked.classes.of_form(form) or {index: f"class {index}" for index in sorted(totals.segments)}
    seen = sorted((index for index in names if totals.segments[index]), key=lambda index: -totals.segments[index])
    left_out = 0 if max_rows is None else max(0, len(seen) - max_rows)
    first_half = (len(seen) - left_out + 1) // 2
    shown = seen[:first_half] + seen[first_half + left_out :]
    num_pixels = max(1, totals.pixels.total())
    lines = tabulate(
        {
            f"  {_TITLES[form]}": [f"      {names[index]}" for index in shown],
            "pictures": [totals.pictures[index] for index in shown],
            # A class is one segment of a semantic label picture.
            **({} if form == "semantic" else {"in all": [totals.segments[index] for index in shown]}),
            "labeled pixels": [f"{totals.pixels[index] / num_pixels:.2%}" for index in shown],
        },
        headers="keys",
        tablefmt="plain",
        colalign=("left", *["right"] * (2 if form == "semantic" else 3)),
        preserve_whitespace=True,
    ).splitlines()
    if left_out:
        lines.insert(1 + first_half, f"      ... {left_out} classes in between (--all-classes shows them)")
    absent = [name for index, name in names.items() if not totals.segments[index]]
    if absent:
        where = "in these pictures" if checked.num_checked < len(checked.records) else "anywhere"
        more = f" and {len(absent) - _NUM_NAMED} more" if len(absent) > _NUM_NAMED else ""
        named = ", ".join(absent[:_NUM_NAMED]) + more
        lines.append(f"      {len(absent)} of {len(names)} classes do not occur {where}: {named}")
    return [*lines, ""]


def _conclusion(errors: Sized, warnings: Sized) -> list[str]:
    if not errors and not warnings:
        return ["Nothing is wrong."]
    kinds = f"{_number(errors, 'error')} and {_number(warnings, 'warning')}."
    return [f"{kinds} Training would stop, or learn from wrong labels." if errors else kinds]


def _number(kinds: Sized, noun: str) -> str:
    return f"{len(kinds) or 'no'} {'kind' if len(kinds) == 1 else 'kinds'} of {noun}s"


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
