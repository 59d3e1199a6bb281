"""Pictures of segmentations: panoptic maps, instances and semantic maps over the image, and strips of several pictures.

Pure functions on arrays. Names and colors come from Detectron2's `Metadata`; classes without a color get one from a
fixed palette. Pictures too small to write on are enlarged by a whole factor (`display_scale`).
"""

# H, W pixels; h, w pixels after enlarging; N instances; K classes.

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.colormap import colormap
from numpy.typing import ArrayLike, NDArray

from mask2former.canvas import Color, Region, add_caption, display_scale, enlarge, paint_regions
from mask2former.modeling.postprocessing import RunLengthMasks

__all__ = [
    "class_color",
    "class_name",
    "display_scale",
    "draw_instances",
    "draw_panoptic",
    "draw_prediction",
    "draw_semantic",
    "enlarge",
    "strip",
]

_PALETTE = colormap(rgb=True).astype(int)
#: Semantic regions below this share of the picture get no name: the text would hide more than it tells.
_MIN_NAMED_SHARE = 0.004


def class_name(metadata: Metadata, category: int) -> str:
    """The name of a contiguous class id, or "class <id>" where the metadata has none."""
    names = _class_list(metadata, "classes")
    return str(names[category]) if 0 <= category < len(names) else f"class {category}"


def class_color(metadata: Metadata, category: int) -> Color:
    """The RGB color (0..255) of a contiguous class id: the dataset's own, or one of a fixed palette."""
    colors = _class_list(metadata, "colors")
    red, green, blue = colors[category] if 0 <= category < len(colors) else _PALETTE[category % len(_PALETTE)]
    return int(red), int(green), int(blue)


def draw_panoptic(
    image: NDArray[np.uint8],
    panoptic_map: ArrayLike,
    segments_info: Sequence[Mapping[str, Any]],
    metadata: Metadata,
    *,
    threshold: float = 0.0,
    vary_instances: bool = True,
    scale: int | None = None,
) -> NDArray[np.uint8]:
    """Draws the segments of a panoptic map; things get tight boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        panoptic_map: (H, W) integers, the `id` of each pixel's segment; ids that are not listed are void.
        segments_info: `id`, `category_id` (contiguous), `isthing` and, where they are known, `score` in [0, 1] and
            `track_id`, an object's number in a video (see `draw_instances`).
        metadata: of the dataset that the classes belong to.
        threshold: segments with a score below this are left out; segments without a score are drawn.
        vary_instances: shift the color of the second and later things of a class (from the left) to tell them apart.
        scale: factor by which the picture is enlarged; None: `display_scale`.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    image = _checked_image(image)
    map_HW = np.asarray(panoptic_map)
    _check_size(image, map_HW, "panoptic map")
    segments = [
        _Segment(
            map_HW == info["id"],
            int(info["category_id"]),
            info.get("score"),
            bool(info["isthing"]),
            info.get("track_id") if info["isthing"] else None,  # stuff is one object: its class says enough
        )
        # Stuff first: the rims and boxes of things stay on top.
        for info in sorted(segments_info, key=lambda info: bool(info["isthing"]))
        if info.get("score") is None or info["score"] >= threshold
    ]
    return paint_regions(image, _regions(segments, metadata, vary_instances=vary_instances), scale=scale)


def draw_instances(
    image: NDArray[np.uint8],
    masks: ArrayLike,
    classes: ArrayLike,
    metadata: Metadata,
    *,
    scores: ArrayLike | None = None,
    track_ids: Sequence[int | None] | None = None,
    threshold: float = 0.0,
    vary_instances: bool = True,
    scale: int | None = None,
) -> NDArray[np.uint8]:
    """Draws instances with their tight boxes, the large ones at the bottom.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W), true (or > 0) inside.
        classes: (N,) contiguous class ids.
        metadata: of the dataset that the classes belong to.
        scores: (N,) in [0, 1], or None (ground truth).
        track_ids: N numbers of objects in a video, or None. An object's number is part of its name, and its color
            depends on class and number only, so that it has the same in every frame.
        threshold: instances with a score below this are left out.
        vary_instances: shift the color of the second and later instances of a class (from the left).
        scale: factor by which the picture is enlarged; None: `display_scale`.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    image = _checked_image(image)
    classes_N = np.asarray(classes, dtype=np.int64)
    scores_N = np.ones(len(classes_N)) if scores is None else np.asarray(scores, dtype=np.float64)
    masks_NHW = np.asarray(masks)
    if len(classes_N):
        _check_size(image, masks_NHW[0], "mask")
    segments = [
        # Float masks are 0 or 1, so any positive value is inside.
        _Segment(
            masks_NHW[index] > 0,
            int(classes_N[index]),
            None if scores is None else float(scores_N[index]),
            True,
            None if track_ids is None else track_ids[index],
        )
        for index in np.flatnonzero(scores_N >= threshold).tolist()
    ]
    segments.sort(key=lambda segment: -int(segment.mask_HW.sum()))
    return paint_regions(image, _regions(segments, metadata, vary_instances=vary_instances), scale=scale)


def draw_semantic(
    image: NDArray[np.uint8], label_map: ArrayLike, metadata: Metadata, *, scale: int | None = None
) -> NDArray[np.uint8]:
    """Draws a map of class ids.

    Args:
        image: (H, W, 3) uint8 RGB.
        label_map: (H, W) contiguous class ids; negative values, the dataset's `ignore_label` and ids beyond its
            classes are left unpainted.
        metadata: of the dataset that the classes belong to.
        scale: factor by which the picture is enlarged; None: `display_scale`.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    image = _checked_image(image)
    labels_HW = np.asarray(label_map)
    _check_size(image, labels_HW, "label map")
    num_classes = len(_class_list(metadata, "classes")) or np.inf
    ignored = metadata.get("ignore_label", 255)
    regions = []
    for category in np.unique(labels_HW):
        if category < 0 or category == ignored or category >= num_classes:
            continue
        mask_HW = labels_HW == category
        name = class_name(metadata, int(category)) if mask_HW.mean() >= _MIN_NAMED_SHARE else ""
        regions.append(Region(mask_HW, name, class_color(metadata, int(category))))
    return paint_regions(image, regions, scale=scale)


def draw_prediction(
    image: NDArray[np.uint8],
    prediction: Mapping[str, Any],
    metadata: Metadata,
    *,
    threshold: float | None = None,
    vary_instances: bool = True,
    scale: int | None = None,
) -> NDArray[np.uint8]:
    """Draws what the model returned for one image: the panoptic result if there is one, else instances, else semantics.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: the model's output for this image, in Detectron2's format, on any device.
        metadata: of the dataset that the model was trained on.
        threshold: score below which a segment or instance, and share of all class scores below which a pixel of the
            semantic result, is left out. None: 0.5 for instances, everything else is drawn.
        vary_instances: shift the color of the second and later things of a class (from the left) to tell them apart.
        scale: factor by which the picture is enlarged; None: `display_scale`.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        ValueError: the prediction has none of the three results.
    """
    if "panoptic_seg" in prediction:
        panoptic_map, segments_info = prediction["panoptic_seg"]
        return draw_panoptic(
            image,
            panoptic_map.cpu().numpy(),
            segments_info,
            metadata,
            threshold=threshold or 0.0,
            vary_instances=vary_instances,
            scale=scale,
        )
    if "instances" in prediction:
        threshold = 0.5 if threshold is None else threshold
        instances = prediction["instances"].to("cpu")
        instances = instances[instances.scores >= threshold]  # of the others no masks are made
        masks_NHW = instances.pred_masks
        if isinstance(masks_NHW, RunLengthMasks):
            masks_NHW = masks_NHW.decode(instances.image_size)
        return draw_instances(
            image,
            masks_NHW.numpy(),
            instances.pred_classes.numpy(),
            metadata,
            scores=instances.scores.float().numpy(),
            threshold=threshold,
            vary_instances=vary_instances,
            scale=scale,
        )
    if "sem_seg" in prediction:
        if prediction["sem_seg"].dim() == 2:  # labels, whose confidence comes with them
            label_map_HW = prediction["sem_seg"]
            confidence_HW = prediction["sem_seg_confidence"] if threshold else None
        else:
            scores_KHW = prediction["sem_seg"].float()
            best_HW, label_map_HW = scores_KHW.max(dim=0)
            confidence_HW = best_HW / scores_KHW.sum(dim=0) if threshold else None
        if confidence_HW is not None:
            label_map_HW = label_map_HW.masked_fill(confidence_HW < threshold, -1)
        return draw_semantic(image, label_map_HW.cpu().numpy(), metadata, scale=scale)
    raise ValueError(
        f"a prediction with {sorted(prediction)} has nothing to draw: set one of MODEL.MASK_FORMER.TEST.PANOPTIC_ON, "
        "INSTANCE_ON or SEMANTIC_ON"
    )


def strip(pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Puts pictures side by side, each under its caption; the lower ones are filled up with white.

    Small pictures are enlarged as the drawings are (`enlarge`), so a picture and its drawing have the same size.

    Args:
        pictures: (H_i, W_i, 3) uint8 RGB, at least one.
        captions: one for each picture, or none at all.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    if not pictures:
        raise ValueError("a strip needs at least one picture, got none")
    if captions and len(captions) != len(pictures):
        raise ValueError(f"a strip of {len(pictures)} pictures needs as many captions, got {len(captions)}")
    pictures = [enlarge(_checked_image(picture)) for picture in pictures]
    if captions:
        pictures = [add_caption(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    height = max(picture.shape[0] for picture in pictures)
    gap = np.full((height, max(2, height // 100), 3), 255, dtype=np.uint8)
    columns: list[NDArray[np.uint8]] = []
    for picture in pictures:
        missing = height - picture.shape[0]
        columns += [gap, np.pad(picture, ((0, missing), (0, 0), (0, 0)), constant_values=255)]
    return np.concatenate(columns[1:], axis=1)


class _Segment(NamedTuple):
    mask_HW: NDArray[np.bool_]
    category: int
    score: float | None
    is_thing: bool
    track_id: int | None = None


def _regions(segments: Sequence[_Segment], metadata: Metadata, *, vary_instances: bool) -> list[Region]:
    """Gives every segment its text and color."""
    colors = [class_color(metadata, segment.category) for segment in segments]
    if vary_instances:
        # From left to right, so that truth and prediction of a picture mostly agree in who gets which color.
        num_seen: Counter[int] = Counter()
        for index in sorted(range(len(segments)), key=lambda index: _middle_column(segments[index].mask_HW)):
            if segments[index].is_thing and segments[index].track_id is None:
                colors[index] = _shifted(colors[index], num_seen[segments[index].category])
                num_seen[segments[index].category] += 1
    regions = []
    for segment, color in zip(segments, colors, strict=True):
        text = class_name(metadata, segment.category)
        if segment.track_id is not None:  # instead of the score, which changes from frame to frame
            text = f"{text} #{segment.track_id}"
            color = _shifted(color, segment.track_id)
        elif segment.score is not None:
            text = f"{text} {segment.score:.0%}"
        regions.append(Region(segment.mask_HW, text, color, has_box=segment.is_thing))
    return regions


def _middle_column(mask_HW: NDArray[np.bool_]) -> float:
    columns = np.flatnonzero(mask_HW.any(axis=0))
    return float(columns.mean()) if len(columns) else 0.0


def _shifted(color: Color, num_before: int) -> Color:
    """A color near the given one: the same for the same number of instances before it, unchanged for the first."""
    if num_before == 0:
        return color
    shift = np.random.default_rng(num_before).uniform(-80, 80, 3)
    red, green, blue = np.clip(np.array(color) + shift, 0, 255).astype(int)
    return int(red), int(green), int(blue)


def _class_list(metadata: Metadata, kind: str) -> Sequence[Any]:
    """`stuff_classes` or `thing_classes` (or the colors), whichever has more entries.

    Class ids are contiguous over all classes. Panoptic datasets list all of them under `stuff_` and only the things,
    whose ids may have gaps, under `thing_`; the others have only one of the lists.
    """
    stuff, things = metadata.get(f"stuff_{kind}", None) or [], metadata.get(f"thing_{kind}", None) or []
    return stuff if len(stuff) >= len(things) else things


def _checked_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"pictures must be (H, W, 3) uint8 RGB arrays, got shape {image.shape} and dtype {image.dtype}"
        )
    return image


def _check_size(image: NDArray[np.uint8], map_HW: NDArray[Any], what: str) -> None:
    if map_HW.shape != image.shape[:2]:
        raise ValueError(f"the {what} is {map_HW.shape}, but the picture is {image.shape[:2]} (height, width)")
