"""YouTube-VIS average precision: COCO's rules for objects that live in time (arXiv:1905.04804, Sec. 4.2).

The IoU of two tracks. An object is the set of pixels (t, y, x) that it covers in the T frames of its video, and the IoU
of two objects is that of their sets, |A & B| / |A | B|. Pixels of different frames are different pixels, so both sizes
are sums over the frames: sum_t |A_t & B_t| / sum_t |A_t | B_t|, where a frame in which only one of the two is seen adds
to the union alone. This is the IoU of two masks in one picture in which the T frames stand side by side: a bijection of
pixels changes no sizes of sets. Hence a video is given to COCO's evaluation as such a picture, a track as a mask in it,
and matching, crowds, recall and precision are COCO's own. What differs is the size of an object: small, medium and
large go by its mean area over the frames in which it is seen, in bounds of 128 and 256 pixels squared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray

from mask2former.evaluation.tracks import joined_frames

__all__ = ["TrackPrecision", "track_average_precision"]

#: Of objects that count as small, medium and large: from and up to this mean area, in pixels.
_AREAS = {"all": (0, 1e10), "small": (0, 128**2), "medium": (128**2, 256**2), "large": (256**2, 1e10)}
_MAX_DETECTIONS = [1, 10, 100]  # in a video
#: Where COCO's summary has them.
_PLACES = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR1": 6, "AR10": 7}


class TrackPrecision(NamedTuple):
    """Figures in percent; NaN where there is no object to find."""

    overall: dict[str, float]  # AP, AP50, AP75, APs, APm, APl, AR1, AR10
    by_class: list[float]  # AP of each category, in the order of category ids


def track_average_precision(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> TrackPrecision:
    """AP and AR of tracks in YouTube-VIS' format.

    Args:
        ground_truth: `videos` {id, height, width, file_names}, `annotations` {video_id, category_id, segmentations,
            iscrowd} with a mask or None for every frame, and `categories`.
        results: {video_id, category_id, score, segmentations}, masks or None for every frame of the video.

    Raises:
        ValueError: an entry is of an unknown video or category, or does not have a mask for every frame.
    """
    videos = {video["id"]: video for video in ground_truth["videos"]}
    numbers = {video_id: number for number, video_id in enumerate(sorted(videos), start=1)}
    categories = [dict(category) for category in ground_truth["categories"]]
    known = {category["id"] for category in categories}
    truth = [
        {**entry, "id": number, "iscrowd": source.get("iscrowd", 0)}
        for number, (source, entry) in enumerate(
            _as_pictures(ground_truth["annotations"], "annotation", videos, numbers, known), start=1
        )
    ]
    found = [
        {**entry, "score": source["score"]} for source, entry in _as_pictures(results, "result", videos, numbers, known)
    ]
    pictures = [
        {"id": numbers[key], "height": video["height"], "width": video["width"] * len(video["file_names"])}
        for key, video in sorted(videos.items())
    ]
    content = {"info": {}, "images": pictures, "annotations": truth, "categories": categories}
    return _judge(content, found)


def _as_pictures(
    tracks: Sequence[Mapping[str, Any]],
    kind: str,
    videos: Mapping[Any, Mapping[str, Any]],
    numbers: Mapping[Any, int],
    categories: set[int],
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Every track as an object in a picture, after the track itself."""
    for index, track in enumerate(tracks):
        video, shapes = videos.get(track["video_id"]), track["segmentations"]
        if video is None:
            raise ValueError(f"{kind} {index} is of video {track['video_id']!r}, which the ground truth lacks")
        if track["category_id"] not in categories:
            raise ValueError(f"{kind} {index} is of category {track['category_id']!r}, which the ground truth lacks")
        if len(shapes) != len(video["file_names"]):
            raise ValueError(
                f"{kind} {index} has {len(shapes)} masks for the {len(video['file_names'])} frames of video "
                f"{track['video_id']!r}"
            )
        joined = joined_frames(shapes, (video["height"], video["width"]))
        yield (
            track,
            {
                "image_id": numbers[track["video_id"]],
                "category_id": track["category_id"],
                "segmentation": joined.mask,
                "area": _mean_area(joined.areas_T),
            },
        )


def _mean_area(areas_T: NDArray[np.int64]) -> float:
    seen = areas_T[areas_T > 0]
    return float(seen.mean()) if len(seen) else 0.0


def _judge(content: dict[str, Any], found: list[dict[str, Any]]) -> TrackPrecision:
    truth = COCO(content)
    areas = [entry["area"] for entry in found]
    results = truth.loadRes(found)  # which numbers the entries 1, 2, ... and gives them the area of the whole picture
    for number, area in enumerate(areas, start=1):
        results.anns[number]["area"] = area
    judged = COCOeval_faster(truth, results, "segm")
    judged.print_function = lambda *_: None
    judged.params.areaRng = [list(bounds) for bounds in _AREAS.values()]
    judged.params.areaRngLbl = list(_AREAS)
    judged.params.maxDets = _MAX_DETECTIONS
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    overall = {name: _percent(judged.stats[place]) for name, place in _PLACES.items()}
    # (IoU thresholds, recalls, categories, area ranges, numbers of detections): all areas, and the largest number
    precision_TRK: NDArray[np.float64] = judged.eval["precision"][:, :, :, 0, -1]
    means = [precision_TR[precision_TR > -1] for precision_TR in np.moveaxis(precision_TRK, 2, 0)]
    return TrackPrecision(overall, [float(100 * values.mean()) if values.size else math.nan for values in means])


def _percent(value: float) -> float:
    return float(100 * value) if value >= 0 else math.nan  # COCO's -1: nothing to find
