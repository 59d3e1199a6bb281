"""Objects of a video as a file: it can be read as YouTube-VIS, and a run that ends early loses nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former.data.datasets.youtube_vis import load_youtube_vis
from mask2former.data.masks import encode_rle
from mask2former.deploy.results import ClassInfo, Segment, Segmentation
from mask2former.deploy.track_file import TrackWriter

CLASSES = (ClassInfo("cat", (250, 0, 0), 17, True), ClassInfo("sky", (0, 0, 250), 40, False))


def square(left):
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, left : left + 6] = True
    return mask


def segmentation(*segments, size=(20, 30)):
    """Of (track id, class, left edge, score)."""
    found = []
    for track_id, category, left, score in segments:
        info = CLASSES[category]
        box = (left, 4, left + 6, 9)
        rle = encode_rle(square(left))
        found.append(
            Segment(category, info.name, info.dataset_id, info.is_thing, score, box, 30, rle, track_id=track_id)
        )
    return Segmentation("instance", *size, tuple(found), None, None, CLASSES)


FRAMES = [
    segmentation((1, 0, 0, 0.8), (2, 1, 20, None)),
    segmentation(),
    segmentation((5, 0, 10, 0.5), (1, 0, 3, 0.6)),
]


def write(path, frames=FRAMES):
    with TrackWriter(path, "film") as writer:
        for frame in frames:
            writer.write(frame)
    return json.loads(path.read_text())


def test_every_object_is_one_annotation_with_an_entry_for_each_frame(tmp_path):
    content = write(tmp_path / "new" / "out.json")
    assert [(track["id"], track["category_id"]) for track in content["annotations"]] == [(1, 17), (2, 40), (5, 17)]
    first, sky, late = content["annotations"]
    assert first["score"] == pytest.approx(0.7) and sky["score"] is None
    assert first["bboxes"] == [[0, 4, 6, 5], None, [3, 4, 6, 5]] and late["areas"] == [None, None, 30]
    assert (coco_mask.decode(first["segmentations"][2]) == square(3)).all()
    assert content["videos"][0]["length"] == 3 and len(content["videos"][0]["file_names"]) == 3
    assert [category["name"] for category in content["categories"]] == ["cat", "sky"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.json"]


def test_the_file_is_read_like_one_of_youtube_vis(tmp_path):
    write(tmp_path / "out.json")
    (record,) = load_youtube_vis(str(tmp_path / "out.json"), "", {17: 0, 40: 1})
    assert [[entry["id"] for entry in frame] for frame in record["annotations"]] == [[1, 2], [], [1, 5]]
    assert (record["height"], record["width"]) == (20, 30)


def test_semantic_regions_are_one_object_for_each_class(tmp_path):
    frames = [segmentation((None, 0, 0, 0.8), (None, 1, 20, 0.9)), segmentation((None, 1, 20, 0.9))]
    content = write(tmp_path / "out.json", frames)
    assert [(track["id"], track["category_id"]) for track in content["annotations"]] == [(0, 17), (1, 40)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_a_complete_file(tmp_path, error):
    with pytest.raises(error), TrackWriter(tmp_path / "out.json", "film") as writer:
        writer.write(FRAMES[0])
        raise error
    assert json.loads((tmp_path / "out.json").read_text())["videos"][0]["length"] == 1


def test_a_killed_run_leaves_a_line_for_each_frame_and_they_are_not_overwritten(tmp_path):
    writer = TrackWriter(tmp_path / "out.json", "film")
    for frame in FRAMES:
        writer.write(frame)
    lines = (tmp_path / "out.json.unfinished").read_bytes().splitlines()
    assert [[entry["id"] for entry in json.loads(line)] for line in lines] == [[1, 2], [], [5, 1]]
    with pytest.raises(FileExistsError, match="unfinished"):
        TrackWriter(tmp_path / "out.json", "film")
    writer.close()


def test_no_frame_leaves_no_file(tmp_path):
    with TrackWriter(tmp_path / "out.json", "film"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "out.json").write_text("precious")
    with pytest.raises(FileExistsError, match=r"out\.json"):
        TrackWriter(tmp_path / "out.json", "film")
    assert (tmp_path / "out.json").read_text() == "precious"


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(10, 10\)"), TrackWriter(tmp_path / "out.json", "film") as writer:
        writer.write(FRAMES[0])
        writer.write(segmentation(size=(10, 10)))
    assert json.loads((tmp_path / "out.json").read_text())["videos"][0]["length"] == 1
