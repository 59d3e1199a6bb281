"""The objects of a video as a file in the format of YouTube-VIS, written while the video runs."""
# T frames.

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from mask2former.files import write_atomically

if TYPE_CHECKING:
    from mask2former.deploy.results import ClassInfo, Segment, Segmentation

__all__ = ["TrackWriter"]


class TrackWriter:
    """Writes `videos`, `categories` and `annotations` of one video, with masks as COCO's compressed run lengths.

    An annotation is an object: `id` (its track id; of semantic regions the class), `category_id`, `score` (mean over
    the frames that show it; null where it is not known), and one entry for each frame, null where it is not seen, in
    `segmentations`, `bboxes` (x, y, width, height) and `areas`. The annotations alone are a list of results as the
    YouTube-VIS server takes it.

    The format lists whole tracks, so the frames go to a file beside it first, one line of JSON each. Leaving the `with`
    block makes the file of it, also after an error or Ctrl-C; a killed program leaves the lines. Memory holds a few
    numbers for each segment.

    Args:
        path: a new file.
        name: of the video, which its frames are called after.

    Raises:
        FileExistsError: the file exists, or the lines of a run that was killed; neither is touched.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self.path = Path(path)
        self._lines_path = self.path.with_name(f"{self.path.name}.unfinished")
        for existing in (self.path, self._lines_path):
            if existing.exists():
                raise FileExistsError(f"{existing} exists and is not overwritten; choose another file or remove it")
        self._name = name
        self.num_frames = 0
        self._tracks: dict[tuple[int, int], _Track] = {}
        self._lines: IO[bytes] | None = None
        self._size = (0, 0)
        self._classes: tuple[ClassInfo, ...] = ()

    def write(self, segmentation: Segmentation) -> None:
        """Appends a frame; all of them have the same size."""
        size = (segmentation.height, segmentation.width)
        if self._lines is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = open(self._lines_path, "x+b")  # noqa: SIM115  closed by close()
            self._size, self._classes = size, segmentation.classes
        if size != self._size:
            raise ValueError(f"frame {self.num_frames} for {self.path} is {size}, but the first one was {self._size}")
        line = json.dumps([_entry(segment) for segment in segmentation.segments]).encode() + b"\n"
        start = self._lines.tell()
        self._lines.write(line)
        self._lines.flush()  # what a killed program leaves
        for place, segment in enumerate(segmentation.segments):
            number = segment.category if segment.track_id is None else segment.track_id
            track = self._tracks.setdefault((number, segment.category), _Track(number, segment.dataset_id))
            track.places.extend((self.num_frames, start, place))
        self.num_frames += 1

    def __enter__(self) -> TrackWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Completes the file; may be called more than once. Without a single frame there is none."""
        lines, self._lines = self._lines, None
        if lines is None:
            return
        with lines:
            lines.flush()
            write_atomically(self.path, lambda file: self._write_all(lines, file))
        self._lines_path.unlink()

    def _write_all(self, lines: IO[bytes], file: IO[bytes]) -> None:
        height, width = self._size
        video = {
            "id": 1,
            "width": width,
            "height": height,
            "length": self.num_frames,
            "file_names": [f"{self._name}/{index:05d}" for index in range(self.num_frames)],
        }
        categories = [
            {"id": info.dataset_id, "name": info.name, "isthing": int(info.is_thing), "color": list(info.color)}
            for info in self._classes
        ]
        head = json.dumps({"videos": [video], "categories": categories})
        file.write(head[:-1].encode() + b', "annotations": [')
        for index, track in enumerate(self._tracks.values()):
            file.write(b",\n" if index else b"\n")
            file.write(json.dumps(self._annotation(track, lines)).encode())
        file.write(b"\n]}\n")

    def _annotation(self, track: _Track, lines: IO[bytes]) -> dict[str, Any]:
        entries: list[dict[str, Any] | None] = [None] * self.num_frames
        for frame, start, place in track:
            lines.seek(start)
            entries[frame] = json.loads(lines.readline())[place]
        scores = [entry["score"] for entry in entries if entry and entry["score"] is not None]
        columns = {
            plural: [entry and entry[key] for entry in entries]
            for plural, key in (("segmentations", "segmentation"), ("bboxes", "bbox"), ("areas", "area"))
        }
        return {
            "id": track.number,
            "video_id": 1,
            "category_id": track.category_id,
            "iscrowd": 0,
            "height": self._size[0],
            "width": self._size[1],
            "length": self.num_frames,
            "score": sum(scores) / len(scores) if scores else None,
            **columns,
        }


class _Track:
    """Where in the lines an object is found."""

    def __init__(self, number: int, category_id: int) -> None:
        self.number, self.category_id = number, category_id
        self.places = array("q")  # frame, start of its line, place in the line

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.places[::3], self.places[1::3], self.places[2::3], strict=True)


def _entry(segment: Segment) -> dict[str, Any]:
    left, top, right, bottom = segment.box
    return {
        "id": segment.track_id,
        "category_id": segment.dataset_id,
        "score": segment.score,
        "segmentation": segment.mask,
        "bbox": [left, top, right - left, bottom - top],
        "area": segment.area,
    }
