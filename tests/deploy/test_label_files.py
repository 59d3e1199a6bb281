"""Label maps and segments as files: read back they are what was written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mask2former.data.masks import rgb_to_id
from mask2former.deploy.label_files import LABEL_SUFFIXES, check_output, write_label_map, write_segments
from mask2former.deploy.large_pictures import Georeference
from tests.deploy.painted import CLASSES, PaintedSegmenter, painted

TASKS = ("panoptic", "instance", "semantic")


@pytest.fixture(scope="module")
def results():
    segmenter, picture = PaintedSegmenter(), painted((600, 700), 20, radius=(20, 60))
    return {task: segmenter(picture, task) for task in TASKS}


@pytest.fixture
def georeference():
    rasterio = pytest.importorskip("rasterio")
    return Georeference(rasterio.CRS.from_epsg(32632), rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000))


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_a_tiff_holds_the_map_and_lies_where_the_picture_lies(tmp_path, results, task, georeference):
    import rasterio

    result = results[task]
    result.label_map[:30, :30] = 0 if task == "panoptic" else -1
    write_label_map(tmp_path / "labels.tif", result, CLASSES, georeference)
    with rasterio.open(tmp_path / "labels.tif") as file:
        labels = file.read(1)
        assert file.crs.to_epsg() == 32632 and file.transform == georeference.transform
        assert file.profile["tiled"] and file.block_shapes == [(512, 512)]
        assert (labels[:30, :30] == file.nodata).all() and np.array_equal(labels[30:], result.label_map[30:])
        assert labels.dtype == ("uint16" if task == "panoptic" else "uint8")
        if task == "semantic":
            assert file.colormap(1)[2] == (*CLASSES[2].color, 255)
            assert json.loads(file.tags()["CLASSES"]) == ["sky", "ground", "cat", "dog"]


def test_a_png_is_what_data_sets_have(tmp_path, results):
    write_label_map(tmp_path / "panoptic.png", results["panoptic"], CLASSES)
    ids = rgb_to_id(np.asarray(Image.open(tmp_path / "panoptic.png")))
    assert np.array_equal(ids, results["panoptic"].label_map)
    write_label_map(tmp_path / "semantic.png", results["semantic"], CLASSES)
    labels = np.asarray(Image.open(tmp_path / "semantic.png")).astype(int)
    assert np.array_equal(np.where(labels == 255, -1, labels), results["semantic"].label_map)


def test_many_classes_need_two_bytes(tmp_path, results):
    write_label_map(tmp_path / "semantic.png", results["semantic"], CLASSES * 100)
    labels = np.asarray(Image.open(tmp_path / "semantic.png")).astype(int)
    assert np.array_equal(np.where(labels == 65535, -1, labels), results["semantic"].label_map)


def test_instances_have_no_map(tmp_path, results):
    with pytest.raises(ValueError, match="instance has no label map"):
        write_label_map(tmp_path / "labels.png", results["instance"], CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", TASKS)
def test_json_has_run_lengths(tmp_path, results, task):
    write_segments(tmp_path / "segments.json", results[task])
    content = json.loads((tmp_path / "segments.json").read_text())
    assert content == json.loads(json.dumps(results[task].to_json(masks="rle")))


def test_json_says_where_the_picture_lies(tmp_path, results, georeference):
    write_segments(tmp_path / "segments.json", results["instance"], georeference)
    content = json.loads((tmp_path / "segments.json").read_text())
    assert content["georeference"] == {"crs": "EPSG:32632", "transform": [10, 0, 500_000, 0, -10, 5_000_000]}


@pytest.mark.parametrize("task", TASKS)
def test_polygons_in_pixels_give_the_masks_back(tmp_path, results, task):
    pytest.importorskip("rasterio")
    from rasterio.features import rasterize

    result = results[task]
    write_segments(tmp_path / "segments.geojson", result)
    features = json.loads((tmp_path / "segments.geojson").read_text())["features"]
    shown = {
        number: rasterize(
            [feature["geometry"] for feature in features if feature["properties"]["segment"] == number],
            out_shape=(result.height, result.width),
        ).astype(bool)
        for number in range(1, 1 + len(result.segments))
    }
    for number, segment in enumerate(result.segments, start=1):
        if task == "instance":
            expected = segment.bitmap()
        else:
            expected = result.label_map == (segment.category if task == "semantic" else number)
        assert np.array_equal(shown[number], expected)
    properties = features[0]["properties"]
    assert properties["class"] == result.segments[properties["segment"] - 1].name
    assert properties["area"] == result.segments[properties["segment"] - 1].area


def test_polygons_of_a_georeferenced_picture_are_in_degrees(tmp_path, results, georeference):
    from rasterio.warp import transform_geom

    write_segments(tmp_path / "segments.geojson", results["instance"], georeference)
    content = json.loads((tmp_path / "segments.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        back = transform_geom("OGC:CRS84", georeference.crs, feature["geometry"])
        x0, y0, x1, y1 = results["instance"].segments[feature["properties"]["segment"] - 1].box
        points = np.array([point for ring in back["coordinates"] for point in ring])
        columns, rows = (points[:, 0] - 500_000) / 10, (5_000_000 - points[:, 1]) / 10
        expected = [x0, x1, y0, y1]
        np.testing.assert_allclose([columns.min(), columns.max(), rows.min(), rows.max()], expected, atol=1e-3)


def test_polygons_of_a_transform_without_system_are_in_its_coordinates(tmp_path, results, georeference):
    write_segments(tmp_path / "segments.geojson", results["instance"], georeference._replace(crs=None))
    content = json.loads((tmp_path / "segments.geojson").read_text())
    x, y = content["features"][0]["geometry"]["coordinates"][0][0]
    assert 500_000 <= x <= 507_000 and 4_994_000 <= y <= 5_000_000


def test_a_result_without_segments_is_an_empty_collection(tmp_path, results):
    pytest.importorskip("rasterio")
    import dataclasses

    write_segments(tmp_path / "none.geojson", dataclasses.replace(results["instance"], segments=()))
    assert json.loads((tmp_path / "none.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_files_are_refused_before_the_work_begins(tmp_path):
    (tmp_path / "there.png").write_bytes(b"kept")
    with pytest.raises(FileExistsError, match="there.png exists and is not overwritten"):
        check_output(tmp_path / "there.png", LABEL_SUFFIXES)
    with pytest.raises(ValueError, match=r"must end in one of .tif, .tiff, .png"):
        check_output(tmp_path / "labels.jpg", LABEL_SUFFIXES)
    with pytest.raises(FileNotFoundError, match="the folder of"):
        check_output(tmp_path / "absent" / "labels.png", LABEL_SUFFIXES)
    assert (tmp_path / "there.png").read_bytes() == b"kept"


def test_a_missing_rasterio_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mask2former\[deploy\]'"):
        check_output(tmp_path / "labels.tif", LABEL_SUFFIXES)
