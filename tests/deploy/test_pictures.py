"""Naming pictures: files, folders and patterns in; new files out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.deploy.pictures import find_pictures, output_paths, write_picture


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "[1].png", "inner/c.png", "inner/b.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_a_folder_means_its_pictures_by_name(folder):
    assert names(find_pictures([str(folder)])) == ["[1].png", "a.JPG", "b.png"]


def test_a_pattern_reaches_into_folders(folder):
    assert names(find_pictures([str(folder / "**" / "*.png")])) == ["[1].png", "b.png", "b.png", "c.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_found(folder):
    assert names(find_pictures([str(folder / "[1].png")])) == ["[1].png"]


def test_the_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert names(find_pictures(["~/*.png"])) == ["[1].png", "b.png"]


def test_a_file_named_twice_is_taken_once(folder):
    assert names(find_pictures([str(folder / "b.png"), str(folder)])) == ["b.png", "[1].png", "a.JPG"]


@pytest.mark.parametrize(
    ("name", "reason"), [("*.gif", "matches no file"), ("x.png", "no such file"), ("empty", "no picture")]
)
def test_an_input_without_pictures_is_named(folder, name, reason):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=reason) as raised:
        find_pictures([str(folder / name)])
    assert name in str(raised.value)


def test_drawings_keep_the_names_of_the_pictures(tmp_path):
    paths = output_paths([Path("x/a.jpg"), Path("y/b.png")], tmp_path / "new")
    assert paths == [tmp_path / "new/a.jpg", tmp_path / "new/b.png"]


def test_equal_names_are_kept_apart_by_their_folders(tmp_path):
    paths = output_paths([Path("x/a.jpg"), Path("x/y/a.jpg")], tmp_path)
    assert paths == [tmp_path / "a.jpg", tmp_path / "y/a.jpg"]


def test_a_format_that_cannot_be_written_becomes_png_without_a_clash(tmp_path):
    assert output_paths([Path("a.psd")], tmp_path) == [tmp_path / "a.png"]
    paths = output_paths([Path("a.psd"), Path("a.png")], tmp_path)
    assert len(set(paths)) == 2 and {path.suffix for path in paths} == {".png"}


def test_a_file_name_is_for_one_picture_only(tmp_path):
    assert output_paths([Path("a.jpg")], tmp_path / "x.png") == [tmp_path / "x.png"]
    with pytest.raises(ValueError, match="2 pictures"):
        output_paths([Path("a.jpg"), Path("b.jpg")], tmp_path / "x.png")


def test_a_suffix_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.xyz"):
        output_paths([Path("a.jpg")], tmp_path / "x.xyz")


def test_existing_outputs_are_named(tmp_path):
    (tmp_path / "b.png").touch()
    with pytest.raises(FileExistsError, match=r"b\.png"):
        output_paths([Path("a.png"), Path("b.png")], tmp_path)


def test_a_picture_is_written_as_it_is_and_nothing_else(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_picture(tmp_path / "new" / "a.png", picture)
    assert (np.asarray(Image.open(tmp_path / "new" / "a.png")) == picture).all()
    assert names((tmp_path / "new").iterdir()) == ["a.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.png"
    target.write_bytes(b"before")
    with pytest.raises(TypeError):
        write_picture(target, np.zeros((2, 2, 3), dtype=np.complex64))
    assert target.read_bytes() == b"before" and names(tmp_path.iterdir()) == ["a.png"]
