"""COCO-Stuff-10k: MATLAB files of both kinds."""

import h5py
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from scipy.io import savemat

from mask2former.data.preparation.coco_stuff_10k import prepare_coco_stuff_10k, read_matlab_labels
from mask2former.data.preparation.jobs import Outcome
from tests.data.preparation.trees import read_picture, write_picture, write_times

LABELS = np.array([[1, 2, 3], [172, 0, 100]], dtype=np.uint16)
CLASSES = [[255, 0, 1], [170, 255, 98]]
STEMS = {
    "train": ["COCO_train2014_000000000077", "COCO_train2014_000000000078"],
    "test": ["COCO_train2014_000000000080"],
}


def write_hdf5(path, labels):
    with h5py.File(path, "w", userblock_size=512) as file:  # MATLAB 7.3 puts a text in front
        file["S"] = labels.T


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "coco/coco_stuff_10k"
    for name in ("annotations", "imageLists"):
        (folder / name).mkdir(parents=True)
    for split, stems in STEMS.items():
        (folder / f"imageLists/{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            write_picture(folder / f"images/{stem}.jpg", np.zeros((2, 3, 3)))
            write_hdf5(folder / f"annotations/{stem}.mat", LABELS)
    return tmp_path


@pytest.fixture
def folder(root):
    return root / "coco/coco_stuff_10k"


def test_labels_are_two_less_and_unlabeled_is_void(root, folder):
    assert prepare_coco_stuff_10k(root, num_workers=1) == Outcome(6, 0)
    for split, stems in STEMS.items():
        for stem in stems:
            assert read_picture(folder / f"annotations_detectron2/{split}/{stem}.png") == CLASSES
            original, image = folder / f"images/{stem}.jpg", folder / f"images_detectron2/{split}/{stem}.jpg"
            assert image.read_bytes() == original.read_bytes()


def test_both_kinds_of_matlab_files_give_the_same_labels(tmp_path):
    write_hdf5(tmp_path / "new.mat", LABELS)
    savemat(tmp_path / "old.mat", {"S": LABELS, "captions": ["not read"]})
    assert read_matlab_labels(tmp_path / "new.mat").tolist() == LABELS.tolist()
    assert read_matlab_labels(tmp_path / "old.mat").tolist() == LABELS.tolist()


@pytest.mark.parametrize("damage", ["cut off", "not MATLAB", "another field", "text"])
def test_a_file_without_labels_is_named(root, folder, damage):
    path = folder / f"annotations/{STEMS['train'][1]}.mat"
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:900])
    elif damage == "not MATLAB":
        path.write_text("something else altogether")
    else:
        savemat(path, {"S": "text"} if damage == "text" else {"T": LABELS})
    with pytest.raises(ValueError, match=str(path)):
        prepare_coco_stuff_10k(root, num_workers=1)
    path.unlink()
    write_hdf5(path, LABELS)
    assert prepare_coco_stuff_10k(root, num_workers=1).num_written < 6
    assert read_picture(folder / f"annotations_detectron2/train/{path.stem}.png") == CLASSES


def test_a_label_beyond_the_classes_is_refused(root, folder):
    write_hdf5(folder / f"annotations/{STEMS['test'][0]}.mat", np.array([[1, 173]]))
    with pytest.raises(ValueError, match=rf"{STEMS['test'][0]}\.mat: labels must be 1\.\.172, found 1\.\.173"):
        prepare_coco_stuff_10k(root, num_workers=1)


def test_a_second_run_writes_nothing(root):
    prepare_coco_stuff_10k(root, num_workers=1)
    times = write_times(root)
    assert prepare_coco_stuff_10k(root, num_workers=1) == Outcome(0, 6)
    assert write_times(root) == times


@pytest.mark.parametrize("missing", ["images", "imageLists/test.txt"])
def test_a_missing_input_is_named_with_the_tree(root, folder, missing):
    (folder / missing).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        prepare_coco_stuff_10k(root, num_workers=1)
    assert str(error.value).startswith(f"{folder / missing} does not exist.")
    assert f"{folder}/imageLists/{{train,test}}.txt" in str(error.value)


@pytest.mark.parametrize("missing", ["images/{}.jpg", "annotations/{}.mat"])
def test_a_listed_file_that_is_missing_is_named(root, folder, missing):
    path = folder / missing.format(STEMS["train"][0])
    path.unlink()
    with pytest.raises(OSError, match=str(path)):
        prepare_coco_stuff_10k(root, num_workers=1)


def test_the_registered_names_read_what_was_prepared(root, folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    prepare_coco_stuff_10k(root, num_workers=1)
    assert len(DatasetCatalog.get("coco_2017_train_stuff_10k_sem_seg")) == 2
    (record,) = DatasetCatalog.get("coco_2017_test_stuff_10k_sem_seg")
    assert read_picture(record["sem_seg_file_name"]) == CLASSES
