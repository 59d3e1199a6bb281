"""Checked inputs and whole files."""

import os

import numpy as np
import pytest

from mask2former.data.preparation.common import boxes_xywh, link_or_copy, list_files, require_inputs, save_picture


def test_boxes_are_left_top_width_height_and_none_where_a_label_does_not_occur():
    labels = np.zeros((4, 6), dtype=np.int32)
    labels[1:3, 2:6] = 1
    labels[3, 0] = 3
    assert boxes_xywh(labels, 4) == [[2, 1, 4, 2], None, [0, 3, 1, 1], None]
    assert boxes_xywh(np.zeros((2, 2), dtype=np.uint8), 0) == []


@pytest.mark.parametrize("is_linkable", [True, False])
def test_a_file_gets_a_second_name_or_is_copied(tmp_path, monkeypatch, is_linkable):
    if not is_linkable:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not on this file system")))
    (tmp_path / "source").write_text("content")
    (tmp_path / "target").write_text("")
    link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "content"
    assert (tmp_path / "target").samefile(tmp_path / "source") == is_linkable


def test_the_second_name_of_a_symbolic_link_is_that_of_its_file(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")
    link_or_copy(tmp_path / "link", tmp_path / "elsewhere" / "target")
    assert (tmp_path / "elsewhere" / "target").read_text() == "content"


def test_the_first_missing_input_is_named_with_the_tree_and_the_download(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        require_inputs([tmp_path, tmp_path / "b", tmp_path / "c"], tree="  b/\n  c/", origin="b-and-c.zip")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'b'} does not exist.") and message.endswith("  b/\n  c/")
    assert "b-and-c.zip" in message and "--root" in message


def test_hidden_files_are_not_listed_and_an_empty_folder_is_named(tmp_path):
    for name in ("b.png", "a.png", "._a.png", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_files(tmp_path, ".png")] == ["a.png", "b.png"]
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} holds no \*\.jpg"):
        list_files(tmp_path, ".jpg")


def test_a_picture_that_cannot_be_encoded_leaves_no_file(tmp_path):
    with pytest.raises(OSError):
        save_picture(tmp_path / "x.jpg", np.zeros((2, 2), dtype=np.uint16))
    assert list(tmp_path.iterdir()) == []
