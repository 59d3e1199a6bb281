"""One JSON file about many pictures: complete, kept, continued, or made anew."""

import json
from pathlib import Path

import pytest

from mask2former.data.preparation.jobs import FileJob, Outcome
from mask2former.data.preparation.records import make_files_and_json
from tests.data.preparation.trees import NUM_FILES, copy_unless_broken, write_times


def describe(job: FileJob) -> dict:
    return {"id": job.key, "says": copy_unless_broken(job)}


def assemble(records: list[dict]) -> dict:
    return {"images": records}


def test_the_json_file_is_written_last_and_a_second_run_keeps_everything(jobs, tmp_path):
    path = tmp_path / "all.json"
    assert make_files_and_json(describe, jobs, path, assemble, num_workers=2) == Outcome(NUM_FILES, 0)
    assert json.loads(path.read_text()) == {"images": [{"id": job.key, "says": job.key} for job in jobs]}
    times = write_times(tmp_path)
    assert make_files_and_json(describe, jobs, path, assemble, num_workers=2) == Outcome(0, NUM_FILES)
    assert write_times(tmp_path) == times
    assert not [name for name in times if Path(name).name.startswith(".")]


@pytest.mark.parametrize("cut_off", [b"", b'["19", {"id": "1', b'["19", {"id": "x", "says": "y"}]'])
def test_interrupted_records_are_continued_where_they_stopped(jobs, tmp_path, cut_off):
    path = tmp_path / "all.json"
    jobs[20].source.write_text("broken")
    with pytest.raises(ValueError, match="20.txt"):
        make_files_and_json(describe, jobs, path, assemble, num_workers=1)
    assert not path.exists()
    with open(tmp_path / ".all.json.journal", "ab") as journal:
        journal.write(cut_off)

    # Interrupted once more, one record later: what follows the cut-off line must be readable too.
    jobs[20].source.write_text("20")
    jobs[21].source.write_text("broken")
    with pytest.raises(ValueError, match="21.txt"):
        make_files_and_json(describe, jobs, path, assemble, num_workers=1)

    jobs[21].source.write_text("21")
    times = write_times(tmp_path / "out")
    outcome = make_files_and_json(describe, jobs, path, assemble, num_workers=1)
    assert outcome == Outcome(NUM_FILES - 21, 21)
    assert times.items() <= write_times(tmp_path / "out").items()
    assert json.loads(path.read_text()) == {"images": [{"id": job.key, "says": job.key} for job in jobs]}
    assert not (tmp_path / ".all.json.journal").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [{"id": "00"}]}', '{"annotations": [{"image_id": "00"}]}'])
def test_a_json_file_that_is_damaged_or_about_other_pictures_is_made_anew(jobs, tmp_path, content):
    path = tmp_path / "all.json"
    path.write_text(content)
    assert make_files_and_json(describe, jobs, path, assemble, num_workers=1) == Outcome(NUM_FILES, 0)
    assert len(json.loads(path.read_text())["images"]) == NUM_FILES


def test_a_json_file_without_all_its_pictures_is_made_anew_with_them(jobs, tmp_path):
    path = tmp_path / "all.json"
    make_files_and_json(describe, jobs, path, assemble, num_workers=1)
    for job in jobs:
        job.target.write_text("of another program")
    jobs[5].target.unlink()
    assert make_files_and_json(describe, jobs, path, assemble, num_workers=1) == Outcome(NUM_FILES, 0)
    assert [job.target.read_text() for job in jobs] == [job.key for job in jobs]
