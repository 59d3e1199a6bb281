"""Writes digit-disc clips as YouTube-VIS, as one folder that appears only when it is complete.

digits_video/{train,val}/JPEGImages/000000/00000.jpg   frames, one folder for each video
digits_video/{train,val}.json                          videos and tracks; uncompressed run lengths for each frame, null
                                                       where the disc is not seen
digits_video/preparation.json                          the settings the folder was made with
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mask2former.data.datasets.categories import Category, load_categories
from mask2former.data.datasets.digit_clips import Clip, clip_random, sample_clip
from mask2former.data.datasets.digits import DrawnScene, Material, Segment, draw_scene, load_material
from mask2former.data.datasets.digits_writer import box_xywh
from mask2former.data.datasets.prepared_folder import Progress, no_progress, prepare_folder, write_json
from mask2former.data.masks import encode_rle
from mask2former.run_lengths import run_counts

__all__ = ["DigitClipsSettings", "prepare_digit_clips"]

_FORMAT_VERSION = 1
# A disc at the rim of the picture counts as seen from this share of it on: nobody could tell what less of it is.
_MIN_SEEN_SHARE = 0.1
# Frames are JPEG, as in YouTube-VIS; at this quality its traces are weaker than the noise of the scenes.
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class DigitClipsSettings:
    """What a prepared folder depends on, and nothing else."""

    num_train: int = 500
    num_val: int = 100
    num_frames: int = 16
    size: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_train < 1 or self.num_val < 1:
            raise ValueError(f"both splits need at least one clip, got train {self.num_train} and val {self.num_val}")
        if self.num_frames < 2:
            raise ValueError(f"in a clip of {self.num_frames} frames nothing moves: it needs at least 2")
        if self.size < 32:
            raise ValueError(f"clips need at least 32 pixels a side for a readable digit, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


def prepare_digit_clips(
    output: str | Path, settings: DigitClipsSettings, *, overwrite: bool = False, progress: Progress = no_progress
) -> bool:
    """Writes both splits under `output`; an interrupted run leaves nothing there.

    Args:
        overwrite: replace a folder that was prepared with other settings.
        progress: wraps the clip indices of a split.

    Returns:
        False when `output` already holds exactly this data set and nothing was done.
    """

    def write(folder: Path) -> None:
        for split, num_clips in (("train", settings.num_train), ("val", settings.num_val)):
            _write_split(folder, split, progress(range(num_clips), split), settings)

    record = {"format_version": _FORMAT_VERSION, **asdict(settings)}
    return prepare_folder(output, record, write, overwrite=overwrite)


def _write_split(root: Path, split: str, indices: Iterable[int], settings: DigitClipsSettings) -> None:
    categories, material = load_categories("digits"), load_material(split)
    videos: list[dict[str, Any]] = []
    tracks: list[dict[str, Any]] = []
    for index in indices:
        random = clip_random(settings.seed, split, index)
        clip = sample_clip(material, size=settings.size, num_frames=settings.num_frames, random=random)
        video_id = index + 1  # as in YouTube-VIS, ids count from 1
        names = [f"{index:06d}/{number:05d}.jpg" for number in range(clip.num_frames)]
        frames = _write_frames(clip, material, [root / split / "JPEGImages" / name for name in names])
        side, length = settings.size, clip.num_frames
        videos.append({"id": video_id, "file_names": names, "height": side, "width": side, "length": length})
        for segments in _tracks(clip, frames):
            tracks.append(_track_annotation(segments, categories, len(tracks) + 1, videos[-1]))
    things = [{"id": category.id, "name": category.name} for category in categories if category.is_thing]
    write_json(root / f"{split}.json", {"videos": videos, "annotations": tracks, "categories": things})


def _write_frames(clip: Clip, material: Material, paths: list[Path]) -> list[DrawnScene]:
    paths[0].parent.mkdir(parents=True)
    frames = [draw_scene(clip.frame(number), material) for number in range(clip.num_frames)]
    for frame, path in zip(frames, paths, strict=True):
        Image.fromarray(frame.image).save(path, quality=_JPEG_QUALITY, subsampling=0)
    return frames


def _tracks(clip: Clip, frames: list[DrawnScene]) -> list[list[Segment | None]]:
    """For each disc that is ever seen what is seen of it in every frame."""
    tracks: list[list[Segment | None]] = [[None] * len(frames) for _ in clip.scene.discs]
    for number, frame in enumerate(frames):
        for segment in frame.segments:
            if segment.disc is None:
                continue
            area = math.pi * clip.scene.discs[segment.disc].radius ** 2
            if segment.mask.sum() >= _MIN_SEEN_SHARE * area:
                tracks[segment.disc][number] = segment
    return [track for track in tracks if any(track)]


def _track_annotation(
    segments: list[Segment | None], categories: list[Category], track_id: int, video: dict[str, Any]
) -> dict[str, Any]:
    seen = next(segment for segment in segments if segment is not None)
    masks = [None if segment is None else segment.mask for segment in segments]
    return {
        "id": track_id,
        "video_id": video["id"],
        "category_id": categories[seen.category].id,
        "iscrowd": 0,
        "height": video["height"],
        "width": video["width"],
        "length": video["length"],
        "segmentations": [None if mask is None else _uncompressed(encode_rle(mask)) for mask in masks],
        "bboxes": [None if mask is None else box_xywh(mask) for mask in masks],
        "areas": [None if mask is None else int(mask.sum()) for mask in masks],
    }


def _uncompressed(rle: dict[str, Any]) -> dict[str, Any]:
    return {**rle, "counts": run_counts(rle["counts"]).tolist()}
