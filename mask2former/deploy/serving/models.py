"""The shapes of requests and answers, from which the OpenAPI description is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from mask2former.deploy.results import MaskFormat, Task

__all__ = [
    "ClassDescription",
    "Health",
    "Limits",
    "ModelDescription",
    "Output",
    "SegmentAnswer",
    "SegmentOptions",
    "SegmentationAnswer",
    "options_for",
]


Output = Literal["json", "overlay", "label_map", "geojson"]


class SegmentOptions(BaseModel):
    """What a client may choose; fields of a form, or of the JSON object beside the picture."""

    model_config = ConfigDict(extra="forbid")

    task: Task
    output: Output = Field(
        "json",
        description="json: all that is known about each segment. overlay: a PNG of the picture with the segments drawn "
        "on it. label_map: a PNG whose gray values (8 bits, or 16 where there are more than 255) are segment numbers, "
        "0 for none; for the semantic task class numbers, the highest value for none. geojson: polygons in pixels, x "
        "to the right, y down.",
    )
    masks: MaskFormat = Field(
        "rle",
        description="How JSON holds the masks: COCO's compressed run lengths, polygons [x0, y0, x1, y1, ...], or not.",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Segments with a score below this are left out. Without it: 0.5 for instances, else none are.",
    )


class RunLengths(BaseModel):
    """COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str


class SegmentAnswer(BaseModel):
    """One segment."""

    category: int = Field(description="Index of the class in the list of GET /v1/model.")
    name: str
    dataset_id: int = Field(description="The number that the data set gives the class.")
    is_thing: bool
    score: float | None = Field(description="0..1; null where it is not known.")
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels.")
    area: int = Field(description="Pixels.")
    mask: RunLengths | None = None
    polygons: list[list[int]] | None = Field(None, description="Each part as [x0, y0, x1, y1, ...] along pixel edges.")


class SegmentationAnswer(BaseModel):
    """What is on a picture. Height and width are those after its EXIF rotation."""

    task: str
    height: int
    width: int
    segments: list[SegmentAnswer]


class ClassDescription(BaseModel):
    name: str
    color: tuple[int, int, int] = Field(description="RGB, 0..255.")
    dataset_id: int
    is_thing: bool


class Limits(BaseModel):
    max_upload_bytes: int
    max_pixels: int
    timeout_seconds: float


class ModelDescription(BaseModel):
    """What the service runs."""

    tasks: list[str] = Field(description="The first is the default.")
    classes: list[ClassDescription]
    limits: Limits
    description: dict[str, Any] = Field(description="Format, precision, versions and the like.")


class Health(BaseModel):
    status: Literal["ok"] = "ok"


def options_for(tasks: Sequence[str]) -> type[SegmentOptions]:
    """`SegmentOptions` whose `task` is one of the model's tasks, the first by default."""
    task_type: Any = Literal[tuple(tasks)]
    task = Field(tasks[0], description="What the model is asked for.")
    return create_model("SegmentOptions", __base__=SegmentOptions, task=(task_type, task))
