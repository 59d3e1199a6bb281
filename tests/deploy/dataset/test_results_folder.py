"""The folder of results: what is in it is whole, belongs together, and tells what is done."""

from __future__ import annotations

import json

import pytest

from mask2former.deploy.dataset.results_folder import ResultsFolder
from mask2former.deploy.dataset.shards import SHARD_FORMATS, shard_format

SETTINGS = {"task": "panoptic", "model": {"weights": "12ab", "precision": "fp32"}}
SEGMENT = {
    "category": 3,
    "name": "disc",
    "dataset_id": 4,
    "is_thing": True,
    "score": None,
    "box": [0.0, 0.0, 2.0, 1.0],
    "area": 2,
    "mask": {"size": [1, 2], "counts": "02"},
}


def record(name, *segments):
    return {"name": name, "task": "panoptic", "height": 1, "width": 2, "segments": list(segments)}


def broken(name):
    return {"name": name, "error": "cut off"}


def open_folder(path, *, form="jsonl", settings=SETTINGS, shard_size=2, **options):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    return ResultsFolder(path, settings, shard_format(form, "rle"), shard_size=shard_size, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", SHARD_FORMATS)
def test_results_and_broken_pictures_are_found_again(tmp_path, form):
    with open_folder(tmp_path, form=form) as folder:
        written = folder.add([record("a"), broken("b"), record("c", SEGMENT), record("d", SEGMENT)])
        assert [path.name for path in written] == [f"part-00000.{form}"]
    assert (tmp_path / f"part-00001.{form}").exists()
    assert lines(tmp_path / "errors.jsonl") == [broken("b")]
    with open_folder(tmp_path, form=form) as folder:
        assert folder.done == {"a", "b", "c", "d"} and (folder.num_results, folder.num_broken) == (3, 1)
        folder.add([record("e"), record("f")])
    assert sorted(path.name for path in tmp_path.glob("part*")) == [f"part-0000{index}.{form}" for index in range(3)]


def test_both_forms_hold_the_same_records(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [record("a"), record("b", SEGMENT, {**SEGMENT, "score": 0.25})]
    for form in SHARD_FORMATS:
        with open_folder(tmp_path / form, form=form) as folder:
            folder.add(records)
    assert lines(tmp_path / "jsonl" / "part-00000.jsonl") == records
    assert parquet.read_table(tmp_path / "parquet" / "part-00000.parquet").to_pylist() == records


@pytest.mark.parametrize("form", SHARD_FORMATS)
def test_a_shard_whose_writing_was_killed_does_not_count(tmp_path, form):
    with open_folder(tmp_path, form=form):
        pass
    (tmp_path / f".part-00000.{form}.unfinished").write_bytes(b"half of a")
    with open_folder(tmp_path, form=form) as folder:
        assert folder.done == set()
        folder.add([record("a")])
    assert [path.name for path in tmp_path.glob("*part*")] == [f"part-00000.{form}"]


def test_half_a_line_about_a_broken_picture_does_not_count(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.add([broken("a"), broken("b")])
    errors = tmp_path / "errors.jsonl"
    errors.write_bytes(errors.read_bytes()[:-3])
    with open_folder(tmp_path) as folder:
        assert folder.done == {"a"}
        folder.add([broken("b")])
    assert lines(errors) == [broken("a"), broken("b")]


def test_broken_pictures_are_forgotten_only_on_demand(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.add([broken("a"), record("b")])
    with open_folder(tmp_path, retry_errors=True) as folder:
        assert folder.done == {"b"} and folder.num_broken == 0
        folder.add([record("a")])
    assert lines(tmp_path / "errors.jsonl") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "task": "semantic"}, r"another task \('panoptic', now 'semantic'\)"),
        ({**SETTINGS, "model": {"weights": "34cd", "precision": "fp32"}}, r"model \(weights: '12ab', now '34cd'\)"),
        ({"model": SETTINGS["model"]}, r"another task \('panoptic', now None\)"),
    ],
)
def test_results_of_other_settings_are_not_mixed(tmp_path, settings, message):
    with open_folder(tmp_path) as folder:
        folder.add([record("a")])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, settings=settings)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds 'thesis.tex' and no manifest.json: choose another --output"):
        open_folder(tmp_path)
    with pytest.raises(FileExistsError):
        open_folder(tmp_path / "thesis.tex")


def test_two_programs_do_not_write_to_one_folder(tmp_path):
    with open_folder(tmp_path), pytest.raises(BlockingIOError, match="another program is writing"):
        open_folder(tmp_path)
    with open_folder(tmp_path):
        pass


@pytest.mark.parametrize("form", SHARD_FORMATS)
def test_a_damaged_shard_is_named(tmp_path, form):
    with open_folder(tmp_path, form=form) as folder:
        folder.add([record("a"), record("b")])
    shard = tmp_path / f"part-00000.{form}"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged .* remove it, and its pictures are done again"):
        open_folder(tmp_path, form=form)


def test_a_picture_cannot_have_two_results(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.add([record("a")])
        with pytest.raises(RuntimeError, match="'a' has a result already"):
            folder.add([record("a")])


def test_a_shard_that_cannot_be_written_is_an_error_and_leaves_no_half(tmp_path):
    folder = open_folder(tmp_path, shard_size=1)
    with pytest.raises(TypeError):
        folder.add([{**record("a"), "segments": [object()]}])
    assert not list(tmp_path.glob("*part*"))
