"""The full ADE20K: its index, its class numbers and the reduction of large pictures."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from mask2former.data.datasets.categories import load_categories
from mask2former.data.preparation.ade20k_full import prepare_ade20k_full, read_index
from mask2former.data.preparation.jobs import Outcome
from tests.data.preparation.trees import read_picture, write_picture, write_times

IMAGES = "ADE20K_2021_17_01/images/ADE"
PICTURES = [
    (f"{IMAGES}/training/urban/street", "ADE_train_00000001.jpg"),
    (f"{IMAGES}/training/work_place/office", "ADE_frame_00000002.jpg"),
    (f"{IMAGES}/validation/urban/street", "ADE_val_00000001.jpg"),
]
WALL, SKY, NOT_TRAINED = 2978, 2420, 1  # numbers in ADE20K's list of classes
NUMBERS = np.array([[WALL, SKY, 0], [NOT_TRAINED, WALL, WALL]])
CLASSES = [[0, 2, 65535], [65535, 0, 0]]


def write_segmentation(path, numbers):
    # The rest of red and blue say which object a pixel belongs to.
    write_picture(path, np.stack([numbers // 256 * 10 + 7, numbers % 256, np.full_like(numbers, 33)], axis=-1))


def write_index(root, **entries):
    folders, names = zip(*PICTURES, strict=True)
    index = {"filename": list(names), "folder": list(folders), "objectPresence": np.zeros((2, 3), np.uint8), **entries}
    path = root / "ADE20K_2021_17_01/index_ade20k.pkl"
    path.write_bytes(pickle.dumps(index))
    return path


@pytest.fixture
def root(tmp_path):
    for folder, name in PICTURES:
        write_picture(tmp_path / folder / name, np.full((2, 3, 3), 200))
        write_segmentation(tmp_path / folder / name.replace(".jpg", "_seg.png"), NUMBERS)
    write_index(tmp_path)
    return tmp_path


@pytest.fixture
def folder(root):
    return root / "ADE20K_2021_17_01"


def test_the_numbers_of_this_test_are_those_of_the_table():
    numbers = [category.key for category in load_categories("ade20k_full_847")]
    assert numbers[0] == WALL and numbers[2] == SKY and NOT_TRAINED not in numbers


def test_small_pictures_keep_their_size_and_class_numbers_become_train_ids(root, folder):
    assert prepare_ade20k_full(root, num_workers=1) == Outcome(3, 0)
    written = {str(path.relative_to(folder)) for path in folder.glob("*_detectron2/*/*")}
    stems = ["training/ADE_train_00000001", "training/ADE_frame_00000002", "validation/ADE_val_00000001"]
    assert written == {f"images_detectron2/{stem}.jpg" for stem in stems} | {
        f"annotations_detectron2/{stem}.tif" for stem in stems
    }
    for stem in stems:
        assert read_picture(folder / f"annotations_detectron2/{stem}.tif") == CLASSES
        assert np.shape(read_picture(folder / f"images_detectron2/{stem}.jpg")) == (2, 3, 3)


def test_the_shorter_side_of_large_pictures_becomes_512(root, folder):
    image, numbers = np.zeros((601, 1024, 3)), np.full((601, 1024), WALL)
    image[:, 512:] = 255
    numbers[:, 512:] = SKY
    write_picture(root / PICTURES[0][0] / PICTURES[0][1], image)
    write_segmentation(root / PICTURES[0][0] / "ADE_train_00000001_seg.png", numbers)
    prepare_ade20k_full(root, num_workers=1)
    labels = np.array(read_picture(folder / "annotations_detectron2/training/ADE_train_00000001.tif"))
    pixels = np.array(read_picture(folder / "images_detectron2/training/ADE_train_00000001.jpg"))
    assert labels.shape == (512, 872) and pixels.shape == (512, 872, 3)  # 1024 * 512 / 601 = 872.4
    assert (labels[:, :436] == 0).all() and (labels[:, 436:] == 2).all()
    assert pixels[:, :430].max() < 20 and pixels[:, 442:].min() > 235


def test_no_class_arises_between_two_others_when_labels_are_reduced(root, folder):
    numbers = np.where(np.arange(600) % 2, WALL, SKY) * np.ones((600, 1), dtype=int)
    write_picture(root / PICTURES[0][0] / PICTURES[0][1], np.zeros((600, 600, 3)))
    write_segmentation(root / PICTURES[0][0] / "ADE_train_00000001_seg.png", numbers)
    prepare_ade20k_full(root, num_workers=1)
    labels = read_picture(folder / "annotations_detectron2/training/ADE_train_00000001.tif")
    assert np.shape(labels) == (512, 512) and np.unique(labels).tolist() == [0, 2]


def test_a_second_run_writes_nothing(root):
    prepare_ade20k_full(root, num_workers=1)
    times = write_times(root)
    assert prepare_ade20k_full(root, num_workers=1) == Outcome(0, 3)
    assert write_times(root) == times


def test_an_interrupted_run_continues(root, folder):
    segmentation = root / PICTURES[1][0] / "ADE_frame_00000002_seg.png"
    segmentation.rename(root / "elsewhere.png")
    with pytest.raises(ValueError, match=f"{segmentation} does not exist"):
        prepare_ade20k_full(root, num_workers=1)
    assert not list(folder.glob("*_detectron2/*/*frame*"))
    (root / "elsewhere.png").rename(segmentation)
    assert prepare_ade20k_full(root, num_workers=1) == Outcome(2, 1)


def test_labels_of_another_size_are_refused(root):
    write_segmentation(root / PICTURES[0][0] / "ADE_train_00000001_seg.png", NUMBERS.T)
    with pytest.raises(ValueError, match=r"ADE_train_00000001_seg\.png has \(height, width\) \(3, 2\)"):
        prepare_ade20k_full(root, num_workers=1)


def test_a_missing_index_is_named_with_the_tree(root, folder):
    (folder / "index_ade20k.pkl").unlink()
    with pytest.raises(FileNotFoundError) as error:
        prepare_ade20k_full(root, num_workers=1)
    assert str(error.value).startswith(f"{folder / 'index_ade20k.pkl'} does not exist.")
    assert f"{folder}/images/ADE/{{training,validation}}/**/*_seg.png" in str(error.value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_and_containers_of_an_index_are_read(tmp_path, protocol):
    content = OrderedDict(
        filename=np.array(["ADE_val_00000001.jpg"], dtype=object),
        folder=("images",),
        counts=[np.float64(1), np.arange(3, dtype=np.uint16)],
    )
    path = tmp_path / "index.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_index(path) == [("images", "ADE_val_00000001.jpg")]


def test_an_index_with_code_is_refused_by_name_and_does_not_run(root, tmp_path):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it ran",)

    path = write_index(root, scene=[Malicious()])
    with pytest.raises(ValueError, match=rf"{path} is cut off or not the index .*it asks for "):
        prepare_ade20k_full(root, num_workers=1)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1]), pickle.dumps({"folder": []})])
def test_another_file_in_place_of_the_index_is_named(tmp_path, content):
    path = tmp_path / "index.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is cut off or not the index of ADE20K"):
        read_index(path)


@pytest.mark.parametrize("name", ["../../ADE_train_1.jpg", "picture.jpg", "ADE_train_1.png"])
def test_names_that_are_not_those_of_ade20k_are_refused(root, name):
    path = write_index(root, filename=[PICTURES[0][1], PICTURES[1][1], name])
    with pytest.raises(ValueError, match="must list pictures named like ADE_train_00000001.jpg"):
        read_index(path)


def test_the_registered_names_read_what_was_prepared(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    prepare_ade20k_full(root, num_workers=1)
    assert len(DatasetCatalog.get("ade20k_full_sem_seg_train")) == 2
    (record,) = DatasetCatalog.get("ade20k_full_sem_seg_val")
    assert read_picture(record["sem_seg_file_name"]) == CLASSES
