"""A segmentation as the bytes that a client asked for."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mask2former.deploy.geojson import feature, outlines_of
from mask2former.deploy.results import Segment, Segmentation

from .models import Output, SegmentOptions

__all__ = ["MEDIA_TYPES", "encode"]

MEDIA_TYPES: dict[Output, str] = {
    "json": "application/json",
    "overlay": "image/png",
    "label_map": "image/png",
    "geojson": "application/geo+json",
}
_INSTANCE_THRESHOLD = 0.5  # as in visualization.draw_prediction
_PNG_EFFORT = 1  # of 0..9: more makes files a little smaller and takes several times as long


def encode(segmentation: Segmentation, picture: NDArray[np.uint8], options: SegmentOptions) -> bytes:
    """The answer's body, of the type that MEDIA_TYPES has for `options.output`.

    Args:
        segmentation: of `picture`.
        picture: (H, W, 3) uint8 RGB.
    """
    threshold = options.threshold
    if threshold is None:
        threshold = _INSTANCE_THRESHOLD if segmentation.task == "instance" else 0.0
    segmentation = _above(segmentation, threshold)
    if options.output == "overlay":
        return _png(Image.fromarray(segmentation.draw(picture)))
    if options.output == "label_map":
        return _label_map(segmentation)
    content = _geojson(segmentation) if options.output == "geojson" else segmentation.to_json(options.masks)
    return json.dumps(content, separators=(",", ":")).encode()


def _above(segmentation: Segmentation, threshold: float) -> Segmentation:
    """Without the segments that have a score below the threshold; they leave the label map, too."""
    scores = [segment.score for segment in segmentation.segments]
    kept = [index for index, score in enumerate(scores) if score is None or score >= threshold]
    return segmentation.keep(kept)


def _label_map(segmentation: Segmentation) -> bytes:
    """A gray PNG; its text chunk `segmentation` is the JSON form without masks, so that the file explains itself."""
    named = segmentation.classes if segmentation.task == "semantic" else segmentation.segments
    depth = np.uint8 if len(named) < 2**8 else np.uint16  # one value is needed for "none"
    labels_HW = _instance_numbers(segmentation) if segmentation.label_map is None else segmentation.label_map
    text = PngInfo()
    text.add_itxt("segmentation", json.dumps(segmentation.to_json("none")))
    return _png(Image.fromarray(labels_HW.astype(depth)), text)  # "no class" becomes the highest value


def _instance_numbers(segmentation: Segmentation) -> NDArray[np.int64]:
    """(H, W) index of each pixel's segment + 1, 0 for none; where instances overlap, that of the best."""
    numbers_HW = np.zeros((segmentation.height, segmentation.width), dtype=np.int64)
    for index, segment in sorted(enumerate(segmentation.segments), key=lambda item: item[1].score or 0.0):
        numbers_HW[segment.bitmap()] = index + 1
    return numbers_HW


def _geojson(segmentation: Segmentation) -> dict[str, Any]:
    """A feature for each segment, in pixels of the picture: x to the right, y down, (0, 0) its upper left corner."""
    features = [
        feature(number, segment, _outlines(segment)) for number, segment in enumerate(segmentation.segments, start=1)
    ]
    return {"type": "FeatureCollection", "features": features}


def _outlines(segment: Segment) -> dict[str, Any]:
    parts = outlines_of(segment, Affine.identity())
    return {"type": "MultiPolygon", "coordinates": [geometry["coordinates"] for geometry in parts]}


def _png(picture: Image.Image, text: PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=_PNG_EFFORT, pnginfo=text)
    return file.getvalue()
