"""YouTube-VIS annotation files: one record for each video, annotations sorted by frame."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from mask2former.data.datasets.annotation_files import Record, complaints_name, read_json

logger = logging.getLogger(__name__)


def load_youtube_vis(json_file: str, image_root: str, contiguous_ids: dict[int, int]) -> list[Record]:
    """The records of a file of videos.

    Args:
        contiguous_ids: category id in the file -> contiguous id.

    Returns:
        For each video `file_names` (in order of time), `height`, `width`, `length`, `video_id` and `annotations`: for
        each frame the objects seen in it as {id, category_id, iscrowd, bbox, bbox_mode, segmentation}. `id` is the same
        in every frame; `category_id` is contiguous; `segmentation` is polygons or compressed run lengths. Validation
        and test files list no objects: then every frame has an empty list.
    """
    content = read_json(json_file)
    num_dropped = 0
    with complaints_name(json_file):
        tracks = defaultdict(list)
        for track in content.get("annotations") or ():
            tracks[track["video_id"]].append(track)
        records = []
        for video in content["videos"]:
            frames: list[list[Record]] = [[] for _ in video["file_names"]]
            for track in tracks.pop(video["id"], ()):
                num_dropped += _add_track(frames, track, contiguous_ids, json_file)
            records.append(
                {
                    "file_names": [os.path.join(image_root, name) for name in video["file_names"]],
                    **{key: video[key] for key in ("height", "width")},
                    "length": len(frames),
                    "video_id": video["id"],
                    "annotations": frames,
                }
            )
    if tracks:
        raise ValueError(f"{json_file} has objects in the video {next(iter(tracks))!r}, which it does not list")
    if num_dropped:
        logger.warning(
            "%s: left out %d objects of single frames without any polygon of 3 points", json_file, num_dropped
        )
    return records


def _add_track(
    frames: list[list[Record]], track: dict[str, Any], contiguous_ids: dict[int, int], json_file: str
) -> int:
    """Puts an object into the frames in which it is seen; returns from how many it was left out as damaged."""
    segmentations, boxes = track["segmentations"], track["bboxes"]
    if not len(segmentations) == len(boxes) == len(frames):
        raise ValueError(
            f"{json_file}: object {track['id']} has {len(segmentations)} segmentations and {len(boxes)} boxes for "
            f"the {len(frames)} frames of video {track['video_id']}"
        )
    if track["category_id"] not in contiguous_ids:
        known = f"{min(contiguous_ids)}..{max(contiguous_ids)}"
        raise ValueError(f"{json_file}: object {track['id']} is of category {track['category_id']}, known are {known}")
    num_dropped = 0
    for frame, segmentation, box in zip(frames, segmentations, boxes, strict=True):
        if not segmentation or not box:
            continue  # not seen in this frame
        cleaned = _clean(segmentation)
        if cleaned is None:
            num_dropped += 1
            continue
        frame.append(
            {
                "id": track["id"],
                "category_id": contiguous_ids[track["category_id"]],
                "iscrowd": track.get("iscrowd", 0),
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "segmentation": cleaned,
            }
        )
    return num_dropped


def _clean(segmentation: Any) -> Any:
    """Run lengths compressed (a quarter of the memory), or polygons of at least 3 points; None if there are none."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0] or None
