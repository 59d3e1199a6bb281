"""The command: what it prints, its exit status, and data sets of any origin."""

from __future__ import annotations

import runpy
import sys

import pytest
from PIL import Image

from mask2former.data import check
from mask2former.data.check import check_dataset, page
from mask2former.data.check.__main__ import main
from mask2former.data.check.report import MAX_LINES
from tests.data.check.own import problems, registered


def test_a_clean_data_set_ends_with_status_0(digits, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", "digits_panoptic_train"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(check.__path__[0], run_name="__main__")
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "4 of 4 pictures" in printed and "ERRORS" not in printed and "WARNINGS" not in printed
    assert printed.endswith("Nothing is wrong.\n")


def test_an_error_gives_status_1_and_its_file(digits, capsys):
    (digits / "train/000000.png").unlink()
    assert main(["digits_instance_train"]) == 1
    printed = capsys.readouterr().out
    assert "ERRORS\n  files that do not exist: 1\n      " + str(digits / "train/000000.png") in printed
    assert "1 kind of errors and no kinds of warnings" in printed


def test_a_warning_alone_gives_status_0(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "scene.png")
    records = [{"file_name": str(tmp_path / "scene.png"), "annotations": []}]
    with registered("empty", records, thing_classes=["cat"]) as name:
        assert main([name]) == 0
    printed = capsys.readouterr().out
    assert "WARNINGS\n  pictures or videos without any labeled object: 1" in printed and "ERRORS" not in printed


def test_missing_roots_end_with_the_expected_tree_instead_of_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(["ade20k_panoptic_train"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mask2former.data.check: error: data set 'ade20k_panoptic_train': ")
    assert "images/training does not exist. Expected files and folders:\n" in captured.err
    assert "ade20k_panoptic_train.json" in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits_panoptik_train"], "'digits_panoptik_train' is not registered; similar names: digits_panoptic_train"),
        (["digits_panoptic_train", "--max-images", "0"], "--max-images must be 1 or more, got 0"),
        (["digits_panoptic_train", "--num-workers", "0"], "--num-workers must be 1 or more, got 0"),
        (["digits_panoptic_train", "--register", "no_such_module"], "no_such_module"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(digits, arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_damaged_annotation_file_is_an_error_on_the_page(digits, capsys):
    path = digits / "annotations/instances_train.json"
    path.write_text(path.read_text()[:200])
    assert main(["digits_instance_train"]) == 1
    assert f"{path} cannot be used" in capsys.readouterr().out


def test_the_page_stays_short_with_thousands_of_problems_of_all_kinds(capsys):
    box = {"bbox": [0, 0, 0, 0], "segmentation": [[1, 2]], "category_id": 500}
    records = [
        {"file_name": f"absent/{number % 900}.jpg", "image_id": number % 900, "height": 8, "width": 9, **labels}
        for number in range(1500)
        for labels in (
            {"annotations": [{**box, "category_id": number % 400}, box, {**box, "segmentation": None}, {}]},
            {"annotations": [{"category_id": 1, "segmentation": [[20, 20, 30, 20, 30, 30]]}]},
            {"pan_seg_file_name": "absent/a.png", "segments_info": [{"id": 1, "category_id": 500}] * 2},
            {"sem_seg_file_name": "absent/b.png"},
        )
    ]
    with registered("hopeless", records, thing_classes=[f"class {index}" for index in range(400)]) as name:
        assert main([name, "--num-workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= MAX_LINES == 60
    assert max(map(len, printed.splitlines())) <= 200
    assert "files that do not exist: 9000, in 6000 pictures" in printed
    assert "(--all-classes shows them)" in printed


def test_every_kind_shows_its_first_three_examples(digits, capsys):
    for scene in range(4):
        (digits / f"train/00000{scene}.png").unlink()
        (digits / f"semantic_train/00000{scene}.png").unlink()
    main(["digits_semantic_val"])
    assert "ERRORS" not in capsys.readouterr().out
    main(["digits_panoptic_train"])
    printed = capsys.readouterr().out
    assert "files that do not exist: 8, in 4 pictures" in printed
    assert printed.count(str(digits)) == 3 and str(digits / "train/000002.png") in printed


def test_all_classes_are_listed_on_demand(digits, capsys):
    main(["digits_panoptic_train", "--all-classes"])
    printed = capsys.readouterr().out
    (absent,) = {line.split()[0] for line in printed.splitlines() if "classes do not occur anywhere" in line}
    assert printed.count(" digit_") + printed.count(" brick") >= 2 * (13 - int(absent) - 2)


def test_some_pictures_only_are_spread_over_the_data_set(digits):
    (digits / "train/000001.png").unlink()
    checked = check_dataset("digits_panoptic_train", max_images=2)
    assert checked.num_checked == 2 and problems(checked) == {}
    assert "2 of 4 pictures" in page(checked) and "do not occur in these pictures" in page(checked)


def test_worker_processes_find_the_same(digits):
    (digits / "train/000001.png").unlink()
    assert check_dataset("digits_panoptic_train", num_workers=2) == check_dataset("digits_panoptic_train")


def test_labels_whose_picture_is_gone_are_named(digits):
    (digits / "train/000001.png").unlink()  # semantic data sets are lists of the pictures in a folder
    checked = check_dataset("digits_semantic_train")
    assert problems(checked) == {"UNUSED_LABEL": (1, [str(digits / "semantic_train/000001.png")])}


def test_records_are_compared_with_each_other():
    label = {"sem_seg_file_name": "absent.png"}
    records = [{"file_name": "a.jpg", "image_id": 1, **label}, {"file_name": "a.jpg", "image_id": 1}, {"width": 3}]
    with registered("compared", records) as name:
        found = problems(check_dataset(name))
    assert found["REPEATED_FILE"] == (1, ["a.jpg (2 times)"])
    assert found["REPEATED_IMAGE_ID"] == (1, ["1 (2 times)"])
    assert found["BROKEN_RECORD"][0] == 3  # two records without labels, one without a picture
    assert any("no 'file_name'" in example for example in found["BROKEN_RECORD"][1])


@pytest.mark.parametrize("records", [[], None, ["a.jpg"]])
def test_a_function_that_gives_no_records_is_an_error(records):
    with registered("nothing", records) as name:
        checked = check_dataset(name)
    assert list(problems(checked)) == ["NOT_LOADED"] and "nothing" in problems(checked)["NOT_LOADED"][1][0]
    assert page(checked)


def test_own_data_sets_are_registered_by_a_module(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "scene.png")
    Image.new("L", (4, 4)).save(tmp_path / "labels.png")
    (tmp_path / "my_own_data.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "record = {'file_name': 'scene.png', 'sem_seg_file_name': 'labels.png'}\n"
        "DatasetCatalog.register('my_own', lambda: [record])\n"
        "MetadataCatalog.get('my_own').set(stuff_classes=['all'])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["my_own", "--register", "my_own_data"]) == 0
    assert "1 of 1 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["digits_panoptic_train", "digits_instance_train", "digits_semantic_train"])
def test_samples_are_drawn_and_broken_ones_left_out(digits, tmp_path, name, capsys):
    (digits / "train/000003.png").unlink()
    main([name, "--save-samples", str(tmp_path / "drawn"), "--num-samples", "9"])
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == [f"{number:06d}_{number:06d}.png" for number in range(3)]
    assert "3 samples in " in capsys.readouterr().out
    with Image.open(tmp_path / "drawn" / drawn[0]) as picture:
        assert picture.width > 2 * 320


def test_clips_are_drawn_as_strips_of_frames(tmp_path):
    for number in range(6):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
    names = [str(tmp_path / f"{number}.png") for number in range(6)]
    objects = [[{"id": 1, "category_id": 0, "segmentation": [[2, 2, 9, 2, 9, 9]]}]] * 6
    with registered("clip", [{"file_names": names, "annotations": objects}], thing_classes=["cat"]) as name:
        assert main([name, "--save-samples", str(tmp_path / "drawn")]) == 0
    with Image.open(tmp_path / "drawn/000000_0.png") as picture:
        assert picture.width > 4 * 400 and picture.height < 400
