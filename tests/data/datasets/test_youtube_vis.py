import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from mask2former.data.masks import decode_segmentations
from tests.data.datasets.trees import touch, write_json

SQUARE = [0, 0, 2, 0, 2, 2, 0, 2]
RUNS = {"size": [4, 6], "counts": [4, 3, 17]}  # uncompressed: three pixels of the second column


def track(identifier: int = 1, **entries) -> dict:
    seen = {
        "segmentations": [[SQUARE], None, RUNS],
        "bboxes": [[0, 0, 2, 2], None, [1, 0, 1, 3]],
        "areas": [4, None, 3],
    }
    return {"id": identifier, "video_id": 5, "category_id": 40, "iscrowd": 0, **seen, **entries}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes ytvis_2021/train.json with one video of three frames and these objects."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = [f"ab/0000{number}.jpg" for number in range(3)]
    touch(tmp_path, *(f"ytvis_2021/train/JPEGImages/{name}" for name in names))
    video = {"id": 5, "file_names": names, "height": 4, "width": 6, "length": 3}

    def write(**content) -> None:
        write_json(tmp_path / "ytvis_2021" / "train.json", {"videos": [video], **content})

    return write


def test_a_video_is_one_record_with_a_list_of_objects_for_each_frame(write, tmp_path) -> None:
    write(
        annotations=[
            track(),
            track(2, category_id=1, segmentations=[None, [SQUARE], None], bboxes=[None, [1] * 4, None]),
        ]
    )
    (record,) = DatasetCatalog.get("ytvis_2021_train")
    folder = tmp_path / "ytvis_2021" / "train" / "JPEGImages" / "ab"
    assert record["file_names"] == [f"{folder}/0000{number}.jpg" for number in range(3)]
    assert [record[key] for key in ("height", "width", "length", "video_id")] == [4, 6, 3, 5]
    assert [[entry["id"] for entry in frame] for frame in record["annotations"]] == [[1], [2], [1]]
    assert [[entry["category_id"] for entry in frame] for frame in record["annotations"]] == [[39], [0], [39]]
    assert record["annotations"][0][0] == {
        "id": 1,
        "category_id": 39,
        "iscrowd": 0,
        "bbox": [0, 0, 2, 2],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": [SQUARE],
    }


def test_run_lengths_are_compressed_and_still_the_same_mask(write) -> None:
    write(annotations=[track()])
    (record,) = DatasetCatalog.get("ytvis_2021_train")
    segmentation = record["annotations"][2][0]["segmentation"]
    assert not isinstance(segmentation["counts"], list)
    expected_HW = np.zeros((4, 6), dtype=bool)
    expected_HW[:3, 1] = True
    np.testing.assert_array_equal(decode_segmentations([segmentation], (4, 6))[0], expected_HW)


def test_videos_without_labels_have_empty_frames(write) -> None:
    write()
    (record,) = DatasetCatalog.get("ytvis_2021_train")
    assert record["annotations"] == [[], [], []]


def test_polygons_of_two_points_are_left_out_and_counted(write, caplog) -> None:
    write(annotations=[track(segmentations=[[[0, 0, 1, 1]], None, [[0, 0, 1, 1], SQUARE]])])
    (record,) = DatasetCatalog.get("ytvis_2021_train")
    assert [[entry["segmentation"] for entry in frame] for frame in record["annotations"]] == [[], [], [[SQUARE]]]
    assert "left out 1 objects" in caplog.text


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"segmentations": [None]}, r"object 1 has 1 segmentations and 3 boxes for the 3 frames of video 5"),
        ({"category_id": 41}, r"object 1 is of category 41, known are 1\.\.40"),
        ({"video_id": 6}, r"objects in the video 6, which it does not list"),
    ],
)
def test_objects_that_do_not_fit_are_named_with_the_file(write, entries, message) -> None:
    write(annotations=[track(**entries)])
    with pytest.raises(ValueError, match=rf"train\.json.*{message}"):
        DatasetCatalog.get("ytvis_2021_train")
