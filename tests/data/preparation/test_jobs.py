"""Many files in worker processes: order, errors, interruptions."""

import os

import pytest

from mask2former.data.preparation.jobs import Outcome, PictureJob, make_files, process
from tests.data.preparation.trees import NUM_FILES, copy, copy_unless_broken, write_times


def stem_or_death(job: PictureJob) -> str:
    if job.key == "20":
        os._exit(9)  # as the system does to a process when memory runs out
    return job.key


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(jobs, num_workers):
    (jobs[0].target.parent).mkdir()
    results = list(process(copy, jobs, description="", num_workers=num_workers))
    assert results == [job.key for job in jobs]


def test_no_jobs_are_no_error():
    assert list(process(copy, [], description="", num_workers=None)) == []


def test_at_least_one_worker_is_asked_for(jobs):
    with pytest.raises(ValueError, match="--num-workers must be 1 or more, got 0"):
        make_files(copy, jobs, description="", num_workers=0)


def test_a_second_run_writes_nothing(jobs, tmp_path):
    assert make_files(copy, jobs, description="", num_workers=2) == Outcome(NUM_FILES, 0)
    times = write_times(tmp_path)
    assert make_files(copy, jobs, description="", num_workers=2) == Outcome(0, NUM_FILES)
    assert write_times(tmp_path) == times


def test_an_empty_file_is_not_taken_for_a_finished_one(jobs):
    make_files(copy, jobs, description="", num_workers=1)
    jobs[3].target.write_bytes(b"")
    assert make_files(copy, jobs, description="", num_workers=1) == Outcome(1, NUM_FILES - 1)
    assert jobs[3].target.read_text() == "03"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_failing_file_is_named_leaves_no_half_and_the_next_run_completes(jobs, num_workers):
    jobs[20].source.write_text("broken")
    with pytest.raises(ValueError, match=r"20\.txt: ValueError: this cannot be copied"):
        make_files(copy_unless_broken, jobs, description="", num_workers=num_workers)
    written = {path.name for path in jobs[0].target.parent.iterdir()}
    assert "20.txt" not in written and written <= {job.target.name for job in jobs}
    assert {"00.txt", "01.txt"} <= written

    jobs[20].source.write_text("20")
    times = write_times(jobs[0].target.parent)
    outcome = make_files(copy_unless_broken, jobs, description="", num_workers=num_workers)
    assert outcome == Outcome(NUM_FILES - len(written), len(written))
    assert [job.target.read_text() for job in jobs] == [job.key for job in jobs]
    assert times.items() <= write_times(jobs[0].target.parent).items()


def test_a_worker_that_is_killed_is_reported_with_a_cure(jobs):
    with pytest.raises(ChildProcessError, match="smaller --num-workers than 2"):
        list(process(stem_or_death, jobs, description="", num_workers=2))
