"""Mapillary Vistas: both releases, and the v1.2 labels inside v2.0."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from mask2former.data.datasets.categories import load_categories
from mask2former.data.preparation.jobs import Outcome
from mask2former.data.preparation.mapillary_vistas import SplitCounts, prepare_mapillary_vistas
from tests.data.preparation.trees import read_picture, write_picture, write_times

STEMS = {"training": ["picture_a", "picture_b"], "validation": ["picture_c"]}
UNLABELED = {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0], "instances": False}


def config(*, num_classes=65) -> dict:
    labels = [
        {"name": c.key, "readable": c.name, "color": list(c.rgb), "instances": c.is_thing, "evaluate": True}
        for c in load_categories("mapillary_65")[:num_classes]
    ]
    return {"version": 1.1, "labels": [*labels, {**UNLABELED, "evaluate": False}]}


def write_labels(folder, stems, year):
    for stem in stems:
        write_picture(folder / f"labels/{stem}.png", [[0, 64, 65]])
        write_picture(folder / f"panoptic/{stem}.png", np.array([[[1, 0, 0], [2, 0, 0], [0, 0, 0]]]))
    annotations = [
        {
            "image_id": stem,
            "file_name": f"{stem}.png",
            "segments_info": [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 65}],
        }
        for stem in stems
    ]
    content = {"images": [], "annotations": annotations}
    (folder / f"panoptic/panoptic_{year}.json").write_text(json.dumps(content))


@pytest.fixture(params=["release v1.2", "release v2.0"])
def root(request, tmp_path):
    folder = tmp_path / "mapillary_vistas"
    for part, stems in STEMS.items():
        for stem in stems:
            write_picture(folder / part / f"images/{stem}.jpg", np.zeros((1, 3, 3)))
        if request.param == "release v1.2":
            write_labels(folder / part, stems, 2018)
        else:
            write_labels(folder / part / "v1.2", stems, 2018)
            write_labels(folder / part / "v2.0", stems, 2020)
    names = ["config.json"] if request.param == "release v1.2" else ["config_v1.2.json", "config_v2.0.json"]
    for name in names:
        (folder / name).write_text(json.dumps(config()))
    return tmp_path


@pytest.fixture
def folder(root):
    return root / "mapillary_vistas"


new_release = pytest.mark.parametrize("root", ["release v2.0"], indirect=True)
old_release = pytest.mark.parametrize("root", ["release v1.2"], indirect=True)


def test_labels_of_v1_2_are_where_release_v1_2_has_them(root, folder):
    report = prepare_mapillary_vistas(root, num_workers=1)
    assert report.num_classes == 65
    assert report.splits == [SplitCounts("train", 2, 2, 2), SplitCounts("val", 1, 1, 1)]
    for part, stems in STEMS.items():
        for stem in stems:
            assert read_picture(folder / part / f"labels/{stem}.png") == [[0, 64, 65]]
        assert len(json.loads((folder / part / "panoptic/panoptic_2018.json").read_text())["annotations"]) == len(stems)


@new_release
def test_labels_inside_release_v2_0_are_brought_once(root, folder):
    assert prepare_mapillary_vistas(root, num_workers=1).brought == Outcome(8, 0)
    times = write_times(root)
    assert prepare_mapillary_vistas(root, num_workers=1).brought == Outcome(0, 8)
    assert write_times(root) == times


@old_release
def test_release_v1_2_needs_nothing_brought(root):
    times = write_times(root)
    assert prepare_mapillary_vistas(root, num_workers=1).brought == Outcome(0, 0)
    assert write_times(root) == times


@new_release
def test_bringing_labels_continues_where_it_stopped(root, folder):
    path = folder / "training/v1.2/labels/picture_b.png"
    prepare_mapillary_vistas(root, num_workers=1)
    (folder / "training/labels/picture_b.png").unlink()
    (folder / "validation/panoptic/panoptic_2018.json").unlink()
    assert prepare_mapillary_vistas(root, num_workers=1).brought == Outcome(2, 6)
    assert (folder / "training/labels/picture_b.png").read_bytes() == path.read_bytes()


@new_release
def test_v2_0_is_ready_as_it_is(root):
    times = write_times(root)
    report = prepare_mapillary_vistas(root, version="v2.0", num_workers=1)
    assert report.splits == [SplitCounts("train", 2, 2, 2), SplitCounts("val", 1, 1, 1)]
    assert (report.num_classes, report.brought) == (65, Outcome(0, 0))
    assert write_times(root) == times


@old_release
def test_v2_0_cannot_come_from_release_v1_2(root, folder):
    with pytest.raises(FileNotFoundError) as error:
        prepare_mapillary_vistas(root, version="v2.0")
    assert str(error.value).startswith(f"{folder / 'config_v2.0.json'} does not exist.")
    assert f"{folder}/{{training,validation}}/v2.0/panoptic/panoptic_2020.json" in str(error.value)


def test_an_unknown_version_is_refused(root):
    with pytest.raises(ValueError, match="--version 3 is unknown; choose from v1.2, v2.0"):
        prepare_mapillary_vistas(root, version="3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"readable": "Fish"}, "class 3 is .*Fish"),
        ({"color": [1, 2, 3]}, r"class 3 is .*\(1, 2, 3\)"),
        ({"instances": True}, "class 3 is .*is_thing=True"),
    ],
)
def test_a_release_with_other_classes_is_refused(root, folder, change, message):
    content = config()
    content["labels"][2] |= change
    path = next(path for path in (folder / "config_v1.2.json", folder / "config.json") if path.exists())
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        prepare_mapillary_vistas(root, num_workers=1)


@old_release
def test_a_release_with_fewer_classes_is_refused(root, folder):
    (folder / "config.json").write_text(json.dumps(config(num_classes=64)))
    with pytest.raises(ValueError, match=r"config\.json lists 64 classes, v1.2 has 65"):
        prepare_mapillary_vistas(root, num_workers=1)


@pytest.mark.parametrize("missing", ["training/images", "config"])
def test_what_is_missing_is_named_with_the_tree(root, folder, missing):
    found = next(folder.glob(f"{missing}*"))
    found.rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        prepare_mapillary_vistas(root, num_workers=1)
    assert str(folder / missing) in str(error.value).splitlines()[0]
    assert f"{folder}/{{training,validation}}/panoptic/panoptic_2018.json" in str(error.value)


@old_release
@pytest.mark.parametrize("missing", ["labels/picture_c.png", "panoptic/picture_c.png", "panoptic/panoptic_2018.json"])
def test_labels_that_are_missing_are_named(root, folder, missing):
    path = folder / "validation" / missing
    path.unlink()
    write_picture(folder / "validation/labels/other.png", [[0]])
    write_picture(folder / "validation/panoptic/other.png", [[0]])
    with pytest.raises(FileNotFoundError, match=f"{path} does not exist"):
        prepare_mapillary_vistas(root, num_workers=1)


def test_the_registered_names_read_what_was_prepared(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    prepare_mapillary_vistas(root, num_workers=1)
    assert len(DatasetCatalog.get("mapillary_vistas_sem_seg_train")) == 2
    (record,) = DatasetCatalog.get("mapillary_vistas_panoptic_val")
    assert [(segment["category_id"], segment["isthing"]) for segment in record["segments_info"]] == [
        (0, True),
        (64, False),
    ]


@new_release
def test_the_registered_names_of_v2_0_read_the_release(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    prepare_mapillary_vistas(root, version="v2.0", num_workers=1)
    assert len(DatasetCatalog.get("mapillary_vistas_v2_sem_seg_train")) == 2
    assert len(DatasetCatalog.get("mapillary_vistas_v2_panoptic_val")) == 1
