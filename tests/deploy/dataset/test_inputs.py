"""Inputs: every picture once, under a name that stays the same, from folders, lists and tables."""

from __future__ import annotations

import pytest

from mask2former.deploy.dataset.inputs import Row, find_inputs


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_table(path, columns):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def test_a_folder_gives_its_pictures_and_those_of_folders_inside(tmp_path):
    touch(tmp_path, "b.png", "a/c.JPG", "a/notes.txt", ".hidden.png", ".cache/d.png")
    inputs = find_inputs(str(tmp_path))
    assert inputs.names == ["a/c.JPG", "b.png"]
    assert list(inputs.rows({"b.png"})) == [Row("a/c.JPG", str(tmp_path / "a/c.JPG"))]


def test_a_list_is_relative_to_its_folder_and_a_file_named_in_two_ways_is_one(tmp_path):
    (tmp_path / "list.txt").write_text(f"b.png\n\n./a/../b.png\n{tmp_path}/b.png\n/else/c.png\nb.png\n")
    inputs = find_inputs(str(tmp_path / "list.txt"))
    assert (inputs.names, inputs.num_repeated) == (["b.png", "/else/c.png"], 3)
    assert [row.source for row in inputs.rows(())] == [str(tmp_path / "b.png"), "/else/c.png"]


def test_a_table_of_paths_is_a_list(tmp_path):
    inputs = find_inputs(write_table(tmp_path / "table.parquet", {"path": ["a.png", "a.png", "b.png"]}))
    assert (inputs.names, inputs.num_repeated, inputs.table) == (["a.png", "b.png"], 1, None)


@pytest.mark.parametrize("as_struct", [False, True])
def test_a_table_of_pictures_gives_bytes_and_names(tmp_path, as_struct):
    images, names = [b"1", None, b"3"], ["x", "y", "z"]
    structs = [{"bytes": image, "path": name} for image, name in zip(images, names, strict=True)]
    columns = {"image": structs} if as_struct else {"image": images, "path": names, "label": [1, 2, 3]}
    inputs = find_inputs(write_table(tmp_path / "table.parquet", columns))
    assert inputs.names == names
    assert list(inputs.rows({"x"})) == [Row("y", None), Row("z", b"3")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"1"]}, "have no names; add a column 'path'"),
        ({"image": [b"1", b"2"], "path": ["a", None]}, "row 1 has no name in column 'path'"),
        ({"image": [b"1", b"2", b"3"], "path": ["a", "b", "a"]}, "rows 0 and 2 have the same name 'a'"),
        ({"picture": [b"1"]}, "neither a column 'image' nor 'path', but 'picture'"),
        ({"path": [""][:0]}, "has no picture"),
    ],
)
def test_a_table_that_does_not_tell_pictures_apart_is_refused(tmp_path, columns, message):
    path = write_table(tmp_path / "table.parquet", columns)
    with pytest.raises(ValueError, match=message):
        find_inputs(path)


def test_an_input_without_pictures_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    for source in (tmp_path, tmp_path / "list.txt"):
        with pytest.raises(ValueError, match=r"has no picture"):
            find_inputs(str(source))
    for name, message in [("nowhere", "does not exist"), ("list.csv", "neither a folder nor a .txt or .parquet")]:
        (tmp_path / "list.csv").touch()
        with pytest.raises(FileNotFoundError, match=message):
            find_inputs(str(tmp_path / name))
