"""demo/demo.py as a user calls it: what it writes, what it refuses, and what is left after an error."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.deploy.video_io import VideoReader, VideoWriter
from mask2former.visualization import enlarge

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/digits/panoptic.yaml")
# The model is untrained: without a threshold it finds segments, but none with a score of 0.9.
SHOW_ALL, SHOW_NOTHING = ["--confidence-threshold", "0"], ["--confidence-threshold", "0.9"]


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_script", ROOT / "demo" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(demo):
    def run(*arguments):
        torch.manual_seed(0)
        return demo.main(["--config-file", CONFIG, *(str(argument) for argument in arguments)])

    return run


@pytest.fixture
def no_network(demo, monkeypatch):
    """Fails the test when a network is built although the arguments are already known to be wrong."""

    def refuse(args):
        raise AssertionError("the network was built before the files were checked")

    monkeypatch.setattr(demo, "build_predictor", refuse)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.jpg"):
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60)).save(folder / name)
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "film.mp4"
    with VideoWriter(path, 10) as writer:
        for index in range(6):
            writer.write(np.full((48, 64, 3), 40 * index, dtype=np.uint8))
    return path


def load(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def num_frames(path):
    with VideoReader(path) as reader:
        return len(list(reader))


@pytest.mark.parametrize(
    ("inputs", "names"),
    [(["a.png"], {"a.png"}), (["."], {"a.png", "b.png", "c.jpg"}), (["*.png"], {"a.png", "b.png"})],
    ids=["file", "folder", "pattern"],
)
def test_drawings_of_files_folders_and_patterns_keep_their_names(run, pictures, tmp_path, inputs, names):
    output = tmp_path / "out"
    assert run("--input", *(pictures / name for name in inputs), "--output", output, *SHOW_ALL) == 0
    assert {path.name for path in output.iterdir()} == names
    drawn = load(output / "a.png")
    original = enlarge(load(pictures / "a.png").astype(np.uint8))
    assert drawn.shape == original.shape and (drawn != original).any()


def test_one_picture_can_have_a_file_as_its_output(run, pictures, tmp_path, capsys):
    assert run("--input", pictures / "a.png", "--output", tmp_path / "new" / "x.png") == 0
    assert (tmp_path / "new" / "x.png").is_file()
    assert str(tmp_path / "new" / "x.png") in capsys.readouterr().out


@pytest.mark.parametrize("task", ["PANOPTIC", "INSTANCE", "SEMANTIC"])
def test_the_confidence_threshold_has_an_effect(run, pictures, tmp_path, task):
    switches = [
        value
        for name in ("PANOPTIC", "INSTANCE", "SEMANTIC")
        for value in (f"MODEL.MASK_FORMER.TEST.{name}_ON", str(name == task))
    ]
    for name, threshold in (("all", SHOW_ALL), ("nothing", SHOW_NOTHING)):
        output = tmp_path / f"{name}.png"
        assert run("--input", pictures / "a.png", "--output", output, *threshold, "--opts", *switches) == 0
    original = enlarge(load(pictures / "a.png").astype(np.uint8))
    assert (load(tmp_path / "all.png") != original).any()
    assert (load(tmp_path / "nothing.png") == original).all()


def test_side_by_side_keeps_the_picture_on_the_left(run, pictures, tmp_path):
    output = tmp_path / "x.png"
    assert run("--input", pictures / "a.png", "--output", output, "--side-by-side", *SHOW_ALL) == 0
    original = enlarge(load(pictures / "a.png").astype(np.uint8))
    height, width = original.shape[:2]
    result = load(output)
    assert result.shape[0] == height and result.shape[1] >= 2 * width
    assert (result[:, :width] == original).all() and (result[:, -width:] != original).any()


def test_a_broken_picture_is_named_and_the_others_are_drawn(run, pictures, tmp_path, capsys):
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    (pictures / "d.png").write_text("no picture")
    output = tmp_path / "out"
    assert run("--input", pictures, "--output", output) == 1
    assert {path.name for path in output.iterdir()} == {"a.png", "c.jpg"}
    summary = capsys.readouterr().err.split("2 of 4 pictures")[1]
    assert "b.png" in summary and "d.png" in summary


def test_a_video_gives_a_video_of_as_many_frames(run, video, tmp_path):
    output = tmp_path / "out.mp4"
    assert run("--video-input", video, "--output", output, *SHOW_ALL) == 0
    with VideoReader(output) as reader:
        assert float(reader.fps) == 10
        assert len(list(reader)) == 6


def test_a_video_into_a_folder_keeps_its_name(run, video, tmp_path):
    (tmp_path / "out").mkdir()
    assert run("--video-input", video, "--output", tmp_path / "out") == 0
    assert num_frames(tmp_path / "out" / "film.mp4") == 6


def test_a_cut_off_video_is_named_and_its_frames_are_kept(run, demo, video, tmp_path, capsys, monkeypatch):
    def break_off(path):
        reader = VideoReader(path)
        reader.num_frames, reader._frames_counted = 60, 60  # as the index of a cut-off file says
        return reader

    monkeypatch.setattr(demo, "VideoReader", break_off)
    output = tmp_path / "out.mp4"
    assert run("--video-input", video, "--output", output) == 1
    assert "film.mp4 ends after 6 of 60 frames" in capsys.readouterr().err
    assert num_frames(output) == 6


def test_stopping_by_hand_keeps_the_pictures_that_are_done(run, demo, pictures, tmp_path, monkeypatch, capsys):
    calls = iter(range(100))

    def draw(picture):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return picture

    monkeypatch.setattr(demo, "picture_draw", lambda args, predictor: draw)
    assert run("--input", pictures, "--output", tmp_path / "out") == 130
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert "stopped" in capsys.readouterr().err


def test_stopping_by_hand_completes_the_files_of_a_video(run, demo, video, tmp_path, monkeypatch, capsys):
    segmented = demo.segmented

    def stopped(args, predictor, frames):
        for result in segmented(args, predictor, frames):
            if result.index == 4:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(demo, "segmented", stopped)
    output, tracks = tmp_path / "out.mp4", tmp_path / "out.json"
    assert run("--video-input", video, "--output", output, "--json", tracks) == 130
    assert num_frames(output) == 4
    assert json.loads(tracks.read_text())["videos"][0]["length"] == 4
    assert "stopped: 4 frames in" in capsys.readouterr().err


def test_a_folder_of_frames_is_a_video(run, pictures, tmp_path):
    output = tmp_path / "out"
    assert run("--video-input", pictures, "--fps", 5, "--output", output) == 0
    with VideoReader(output / "pictures.mp4") as reader:
        assert float(reader.fps) == 5 and len(list(reader)) == 3


def test_frames_of_other_sizes_are_resized_to_the_first(run, pictures, tmp_path, caplog):
    Image.new("RGB", (50, 40)).save(pictures / "b.png")
    with caplog.at_level("WARNING"):
        assert run("--video-input", pictures, "--output", tmp_path / "out.mp4", "--json", tmp_path / "out.json") == 0
    assert num_frames(tmp_path / "out.mp4") == 3
    assert "frame 1 is 50x40" in caplog.text


def test_a_broken_frame_ends_the_video_and_the_frames_before_it_are_kept(run, pictures, tmp_path, capsys):
    (pictures / "c.jpg").write_text("no picture")
    assert run("--video-input", pictures, "--output", tmp_path / "out.mp4", "--latency", 2) == 1
    error = capsys.readouterr().err
    assert "c.jpg" in error and "2 frames in" in error
    assert num_frames(tmp_path / "out.mp4") == 2


def test_a_folder_without_frames_is_named(run, no_network, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("--video-input", tmp_path / "empty", "--output", tmp_path / "out.mp4") == 2
    assert "empty has no picture" in capsys.readouterr().err


def test_frames_are_written_as_pictures_where_the_output_says_so(run, video, tmp_path):
    assert run("--video-input", video, "--output", tmp_path / "out" / "%03d.png") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{index:03d}.png" for index in range(6)]


def test_objects_of_a_video_go_into_a_file_that_needs_no_drawings(run, video, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert run("--video-input", video, "--json", path, *SHOW_ALL) == 0
    content = json.loads(path.read_text())
    assert content["videos"][0]["length"] == 6 and content["annotations"]
    assert all(len(track["segmentations"]) == 6 for track in content["annotations"])
    assert str(path) in capsys.readouterr().out
    assert list(tmp_path.glob("out*")) == [path]


@pytest.mark.parametrize("task", ["INSTANCE", "SEMANTIC"])
def test_videos_of_other_tasks(run, video, tmp_path, task):
    switches = ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False", f"MODEL.MASK_FORMER.TEST.{task}_ON", "True"]
    arguments = ["--output", tmp_path / "out.mp4", "--json", tmp_path / "out.json", "--smoothing", 0.5, *SHOW_ALL]
    assert run("--video-input", video, *arguments, "--opts", *switches) == 0
    assert num_frames(tmp_path / "out.mp4") == 6
    assert json.loads((tmp_path / "out.json").read_text())["annotations"]


@pytest.mark.parametrize("source", ["video", "pictures"])
def test_models_of_videos_work_like_those_of_images(run, video, pictures, tmp_path, source):
    config = ["--config-file", ROOT / "configs/digits/video.yaml"]
    if source == "video":
        arguments = ["--video-input", video, "--json", tmp_path / "out.json", "--window", 4, "--overlap", 2]
        assert run(*config, *arguments, "--output", tmp_path / "out.mp4", "--opts", "MODEL.WEIGHTS", "") == 0
        assert num_frames(tmp_path / "out.mp4") == 6
    else:
        assert run(*config, "--input", pictures, "--output", tmp_path / "out", "--opts", "MODEL.WEIGHTS", "") == 0
        assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--window", "4"], "window"),
        (["--fps", "5"], "--fps"),
        (["--output", "frames.png"], "frames/%05d.png"),
        (["--output", "film.avi"], "film.avi"),
    ],
)
def test_options_without_effect_and_outputs_without_writer_are_refused(run, video, tmp_path, capsys, arguments, named):
    if "--output" not in arguments:
        arguments = [*arguments, "--output", tmp_path / "out.mp4"]
    assert run("--video-input", video, *arguments) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_an_existing_file_of_objects_is_not_overwritten(run, no_network, video, tmp_path, capsys):
    (tmp_path / "out.json").write_text("precious")
    assert run("--video-input", video, "--json", tmp_path / "out.json") == 2
    assert "out.json" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text() == "precious"


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_video_that_cannot_be_written_is_said_in_a_sentence(run, video, tmp_path, capsys, option):
    (tmp_path / "file").write_text("mine")
    assert run("--video-input", video, option, tmp_path / "file" / "out.mp4") in (1, 2)
    assert any(line.startswith("demo.py: error: ") for line in capsys.readouterr().err.splitlines())
    assert (tmp_path / "file").read_text() == "mine"


def test_existing_drawings_are_not_overwritten(run, no_network, pictures, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").write_text("precious")
    assert run("--input", pictures, "--output", tmp_path / "out") == 2
    assert "b.png" in capsys.readouterr().err
    assert (tmp_path / "out" / "b.png").read_text() == "precious"
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_an_existing_video_is_not_overwritten(run, no_network, video, tmp_path, capsys):
    (tmp_path / "out.mp4").write_text("precious")
    assert run("--video-input", video, "--output", tmp_path / "out.mp4") == 2
    assert "out.mp4" in capsys.readouterr().err
    assert (tmp_path / "out.mp4").read_text() == "precious"


@pytest.mark.parametrize("name", ["*.gif", "nothing.png"])
def test_an_input_that_matches_nothing_is_named(run, no_network, pictures, tmp_path, capsys, name):
    assert run("--input", pictures / name, "--output", tmp_path / "out") == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"", b"no video"], ids=["missing", "empty", "text"])
def test_an_unreadable_video_is_named(run, no_network, tmp_path, capsys, content):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    assert run("--video-input", path, "--output", tmp_path / "out.mp4") == 2
    assert "bad.mp4" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_without_output_and_window_the_cure_is_said(run, no_network, demo, pictures, capsys, monkeypatch):
    def refuse():
        raise RuntimeError("there is no screen: give --output")

    monkeypatch.setattr(demo, "check_window_support", refuse)
    assert run("--input", pictures) == 2
    assert "--output" in capsys.readouterr().err


def test_the_camera_can_be_written_to_a_file(run, demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "camera_frames", lambda: iter([np.zeros((48, 64, 3), dtype=np.uint8)] * 3))
    assert run("--webcam", "--output", tmp_path / "out") == 0
    assert num_frames(tmp_path / "out" / "webcam.mp4") == 3


def test_a_recording_of_the_camera_lasts_as_long_as_it_took(run, demo, tmp_path, monkeypatch):
    def slow_camera():
        for _ in range(3):
            yield np.zeros((48, 64, 3), dtype=np.uint8)
            time.sleep(0.5)

    monkeypatch.setattr(demo, "camera_frames", slow_camera)
    assert run("--webcam", "--output", tmp_path / "webcam.mp4") == 0
    with av.open(str(tmp_path / "webcam.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times[0] == 0 and times[2] >= 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["--input", "a.png", "--webcam"], ["--input", "a.png", "--confidence-threshold", "1.5"]],
    ids=["no source", "two sources", "threshold above one"],
)
def test_arguments_that_make_no_sense_are_refused(run, arguments):
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    assert raised.value.code == 2


@pytest.mark.parametrize(
    "overrides",
    [["MODEL.WEIGHTS", "missing.pth"], ["MODEL.NO_SUCH_KEY", "1"], ["MODEL.BACKBONE.NAME", "missing.pth"]],
)
def test_a_bad_model_is_said_in_a_sentence(run, pictures, tmp_path, capsys, overrides):
    assert run("--input", pictures, "--output", tmp_path / "out", "--opts", *overrides) == 2
    error = capsys.readouterr().err
    assert "missing.pth" in error or "NO_SUCH_KEY" in error
    assert not (tmp_path / "out").exists()


def test_a_place_where_nothing_can_be_written_is_said_in_a_sentence(run, pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run("--input", pictures, "--output", tmp_path / "file" / "out") in (1, 2)
    assert any(line.startswith("demo.py: error: ") for line in capsys.readouterr().err.splitlines())
    assert (tmp_path / "file").read_text() == "mine"
