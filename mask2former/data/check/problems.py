"""What can be wrong with a data set, and what was found in one picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

__all__ = ["ClassCounts", "Findings", "Form", "Kind"]

#: Forms of labels. A picture may have several of them.
Form = Literal["panoptic", "instance", "semantic"]


class Kind(Enum):
    """A kind of problem: (what the page calls it, whether it is an error).

    An error stops training, or lets it learn from wrong labels. A warning may be meant so.
    """

    NOT_LOADED = ("the records cannot be loaded, so no picture was looked at", True)
    BROKEN_RECORD = ("records that lack an entry, or have a wrong one", True)
    MISSING_FILE = ("files that do not exist", True)
    UNREADABLE_FILE = ("files that are damaged, or no pictures of the kind they should be", True)
    PICTURE_SIZE = ("pictures of another size than their annotation says", True)
    LABEL_SIZE = ("label pictures of another size than their picture", True)
    UNLISTED_ID = ("segments of a panoptic picture that its annotation does not list", True)
    ABSENT_ID = ("segments of an annotation that have no pixel in the panoptic picture", True)
    REPEATED_ID = ("segments of one picture with the same id", True)
    UNKNOWN_CLASS = ("labels of a class that the data set does not have", True)
    BAD_SHAPE = ("polygons or run lengths that cannot be drawn", True)
    NO_SHAPE = ("objects without a segmentation", True)
    FRAME_COUNT = ("videos whose lists of frames and labels differ in length", True)
    REPEATED_IMAGE_ID = ("pictures with the same image_id", True)
    REPEATED_ANNOTATION_ID = ("annotations with the same id", True)
    STRAY_ANNOTATION = ("annotations of pictures that their file does not list", True)
    EMPTY_MASK = ("objects whose mask has no pixel in the picture", False)
    BAD_BOX = ("objects whose box has no width or no height", False)
    DROPPED_OBJECT = ("objects left out when the records are loaded: no polygon of three points", False)
    UNUSED_PICTURE = ("pictures that the annotation file lists without an annotation: they are not used", False)
    REPEATED_FILE = ("pictures that are listed more than once", False)
    NO_LABELS = ("pictures or videos without any labeled object", False)
    ONLY_VOID = ("label pictures in which no pixel has a class", False)
    SHIFTED = ("semantic labels that count classes from 1", True)
    UNUSED_LABEL = ("label pictures in the folder of labels that belong to no listed picture", False)

    def __init__(self, title: str, is_error: bool) -> None:
        self.title = title
        self.is_error = is_error


@dataclass
class Problem:
    """All problems of one kind in one picture."""

    count: int
    example: str  # the first of them, with the name of its file


@dataclass
class ClassCounts:
    """How often each class occurs in one picture, by contiguous id."""

    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    num_crowds: int = 0

    def add(self, category: int, num_pixels: int) -> None:
        self.segments[category] += 1
        self.pixels[category] += num_pixels


@dataclass
class Findings:
    """What was found in one picture, or (`is_picture` False) in a list of pictures.

    Attributes:
        name: the file.
        size: (height, width) of a picture that could be read.
        void: share of the pixels, in [0, 1], that have no class, for each form of label pictures.
    """

    name: str
    is_picture: bool = True
    size: tuple[int, int] | None = None
    problems: dict[Kind, Problem] = field(default_factory=dict)
    classes: dict[Form, ClassCounts] = field(default_factory=dict)
    void: dict[Form, float] = field(default_factory=dict)

    def report(self, kind: Kind, example: object, count: int = 1) -> None:
        """Notes `count` problems; of each kind the first example is kept."""
        if kind in self.problems:
            self.problems[kind].count += count
        else:
            self.problems[kind] = Problem(count, str(example))
