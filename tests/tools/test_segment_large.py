"""tools/segment_large.py: files in, files out, mistakes in a sentence."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.deploy.painted import PaintedSegmenter, painted

SCRIPT = Path(__file__).parents[2] / "tools/segment_large.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("segment_large_tool", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tool, tmp_path, monkeypatch):
    """Runs the script in the folder tmp_path with a segmenter that reads painted pictures; returns its status."""
    monkeypatch.setattr(tool, "load", lambda *_, **__: PaintedSegmenter())
    Image.fromarray(painted((150, 200), 30)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)

    def run(*options, picture="picture.png"):
        sizes = ["--tile", "64", "--overlap", "16", "--memory-budget", "100000"]
        return tool.main(["--model", "any", "--input", picture, *sizes, *options])

    return run


def test_a_picture_gives_a_label_map_and_segments(run, tmp_path, capsys):
    assert run("--labels", "labels.png", "--segments", "segments.json") == 0
    content = json.loads((tmp_path / "segments.json").read_text())
    assert len(content["segments"]) == 32 and Image.open(tmp_path / "labels.png").size == (200, 150)
    printed = capsys.readouterr().out
    assert "32 panoptic segments in 150 x 200 pixels" in printed and "written: segments.json" in printed


def test_a_geotiff_gives_a_geotiff_and_geojson(run, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    profile = {"driver": "GTiff", "height": 150, "width": 200, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 600_000, 0, -1, 5_400_000)}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile, **place) as file:
        file.write(painted((150, 200), 30).transpose(2, 0, 1))
    assert run("--labels", "labels.tif", "--segments", "cats.geojson", picture="scene.tif") == 0
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.crs.to_epsg() == 32632 and len(np.unique(file.read(1))) == 32
    longitude, latitude = json.loads((tmp_path / "cats.geojson").read_text())["features"][0]["geometry"]["coordinates"][
        0
    ][0]
    assert 10.3 < longitude < 10.4 and 48.7 < latitude < 48.8


def test_clean_up_options_reach_the_masks(run, tmp_path):
    options = ["--min-area", "300", "--fill-holes", "5", "--open", "1", "--close", "1", "--nms", "0.5"]
    assert run("--task", "instance", "--segments", "few.json", *options) == 0
    assert run("--task", "instance", "--segments", "none.json", "--threshold", "0.95") == 0
    assert 0 < len(json.loads((tmp_path / "few.json").read_text())["segments"]) < 30
    assert json.loads((tmp_path / "none.json").read_text())["segments"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to write: give --labels, --segments or both"),
        (["--labels", "labels.gif"], "must end in one of .tif, .tiff, .png"),
        (["--segments", "picture.json", "--value-range", "9", "3"], "must ascend"),
        (["--segments", "a.json", "--bands", "1"], "bands are chosen in TIFF files only"),
        (["--task", "instance", "--labels", "a.png"], "instances may overlap and have no label map"),
        (["--segments", "a.json", "--nms", "0.5"], "--nms is for instances"),
        (["--segments", "a.json", "--threshold", "2"], "threshold must lie in 0..1"),
        (["--segments", "a.json", "--max-pixels", "100"], "more than the 100 that are allowed"),
        (["--labels", "picture.png"], "exists and is not overwritten"),
    ],
)
def test_wrong_use_is_status_2_and_a_sentence(run, options, message, capsys):
    assert run(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("segment_large.py: error: ") and message in error and error.count("\n") == 1


def test_tiles_smaller_than_the_overlap_are_refused(run, tmp_path, capsys):
    assert run("--segments", "a.json", "--tile", "20") == 1
    assert "overlap 16 must be less than half of tile 20" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_a_file_that_is_cut_off_writes_nothing(run, tmp_path, capsys):
    data = (tmp_path / "picture.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    assert run("--segments", "a.json", picture="cut.png") == 2
    assert "cut.png is damaged or cut off" in capsys.readouterr().err and not (tmp_path / "a.json").exists()
