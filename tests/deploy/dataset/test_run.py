"""Whole runs: what is killed continues, nothing is lost or doubled, and broken pictures and workers stop nobody."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from mask2former.deploy.dataset.inputs import find_inputs
from tests.deploy.dataset import fake

ROOT = Path(__file__).parents[3]
NUMBER = 120


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """120 pictures of which 5 are broken in different ways."""
    folder = tmp_path_factory.mktemp("pictures")
    fake.write_pictures(folder, NUMBER, {7: fake.GRAY, 21: fake.GREEN})
    (folder / "010.png").write_bytes(b"no picture")
    whole = (folder / "011.png").read_bytes()
    (folder / "011.png").write_bytes(whole[:-25])
    (folder / "012.png").unlink()
    (folder / "012.png").symlink_to(folder / "nowhere.png")
    return folder


BROKEN = {
    "007.png": "cannot be segmented: it is gray",
    "010.png": "is not a picture",
    "011.png": "cut off",
    "012.png": "does not exist",
    "021.png": "was killed twice, probably because memory ran out",
}


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory):
    """Output of a run that nothing has disturbed, and its summary."""
    output = tmp_path_factory.mktemp("uninterrupted") / "results"
    return output, run(pictures, output)


def run(source, output, **settings):
    return fake.dataset_run(**settings).prepare(find_inputs(str(source)), output)()


def records(output):
    """Everything that was written, by name; a name that was written twice fails."""
    found = [json.loads(line) for path in output.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert max(Counter(record["name"] for record in found).values()) == 1
    return {record["name"]: record for record in found}


def test_every_picture_has_a_result_or_a_reason(uninterrupted):
    output, summary = uninterrupted
    found = records(output)
    assert set(found) == {f"{index:03d}.png" for index in range(NUMBER)}
    assert {name for name, record in found.items() if "error" in record} == set(BROKEN)
    for name, reason in BROKEN.items():
        assert reason in found[name]["error"]
    assert found["119.png"]["width"] == 5 + 119 % 3 and found["119.png"]["segments"][0]["category"] == 119
    assert (summary.num_results, summary.num_broken, summary.num_left, summary.num_new) == (115, 5, 0, 120)
    assert "115 results, 5 broken, 0 left" in str(summary)


def test_a_run_that_is_killed_continues_with_nothing_lost_or_doubled(pictures, uninterrupted, tmp_path):
    output = tmp_path / "results"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.deploy.dataset.fake", str(pictures), str(output)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while not list(output.glob("part-*")):
        assert process.poll() is None, "the run ends before it has written anything"
        time.sleep(0.005)
    time.sleep(random.uniform(0, 20 * fake.SECONDS))
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path: path.read_bytes() for path in output.glob("part-*")}
    summary = run(pictures, output)
    assert 0 < summary.num_new < NUMBER and summary.num_left == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert records(output) == records(uninterrupted[0])


def test_what_is_done_is_not_done_again(pictures, uninterrupted):
    output, _ = uninterrupted
    before = records(output)
    assert run(pictures, output).num_new == 0
    assert records(output) == before


def signal_after_first_shard(output, number, is_over):
    while not list(output.glob("part-*")):
        if is_over.wait(0.005):
            return
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_work_and_the_same_command_continues(pictures, tmp_path, number):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    is_over = threading.Event()
    sender = threading.Thread(target=signal_after_first_shard, args=(tmp_path, number, is_over))
    sender.start()
    try:
        summary = run(pictures, tmp_path)
    finally:
        is_over.set()
        sender.join()
    assert summary.signal == number and 0 < summary.num_left < NUMBER
    assert len(records(tmp_path)) == summary.num_new == NUMBER - summary.num_left
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert run(pictures, tmp_path).num_left == 0
    assert len(records(tmp_path)) == NUMBER


def test_new_pictures_are_added_to_results(tmp_path):
    fake.write_pictures(tmp_path / "pictures", 3)
    run(tmp_path / "pictures", tmp_path / "out")
    fake.write_pictures(tmp_path / "pictures", 5)
    assert run(tmp_path / "pictures", tmp_path / "out").num_new == 2
    assert len(records(tmp_path / "out")) == 5


def test_broken_pictures_are_tried_again_on_demand(tmp_path):
    folder, output = tmp_path / "pictures", tmp_path / "out"
    fake.write_pictures(folder, 4, {1: fake.GRAY, 2: fake.GRAY})
    assert run(folder, output).num_broken == 2
    fake.write_pictures(folder, 4, {2: fake.GRAY})
    assert run(folder, output).num_new == 0
    summary = run(folder, output, retry_errors=True)
    assert (summary.num_new, summary.num_results, summary.num_broken) == (2, 3, 1)
    assert "error" in records(output)["002.png"]


def test_a_picture_named_twice_is_done_once(tmp_path):
    fake.write_pictures(tmp_path, 3)
    (tmp_path / "list.txt").write_text("000.png\n001.png\n./000.png\n002.png\n001.png\n")
    assert run(tmp_path / "list.txt", tmp_path / "out").num_results == 3
    assert sorted(records(tmp_path / "out")) == ["000.png", "001.png", "002.png"]


def test_a_table_of_pictures_gives_what_their_files_give(pictures, uninterrupted, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(path for path in pictures.iterdir() if path.name != "012.png")
    images = {"path": [path.name for path in files], "image": [path.read_bytes() for path in files]}
    parquet.write_table(pyarrow.table(images), tmp_path / "table.parquet", row_group_size=50)
    run(tmp_path / "table.parquet", tmp_path / "out")
    found, expected = records(tmp_path / "out"), records(uninterrupted[0])
    assert set(found) == set(expected) - {"012.png"}
    assert {name for name, record in found.items() if "error" in record} == set(BROKEN) - {"012.png"}
    assert all("error" in record or record == expected[name] for name, record in found.items())


def test_an_error_of_the_model_ends_the_run_and_keeps_what_is_done(tmp_path):
    fake.write_pictures(tmp_path / "pictures", 40, {30: fake.YELLOW})
    with pytest.raises(RuntimeError, match="the model is broken"):
        run(tmp_path / "pictures", tmp_path / "out")
    assert 0 < len(records(tmp_path / "out")) < 40


def test_workers_that_die_one_after_the_other_end_the_run(tmp_path):
    fake.write_pictures(tmp_path / "pictures", 12, dict.fromkeys(range(2, 12), fake.GREEN))
    with pytest.raises(ChildProcessError, match="5 worker processes were killed one after the other"):
        run(tmp_path / "pictures", tmp_path / "out", num_workers=(1, 1))
    assert {name for name, record in records(tmp_path / "out").items() if "error" not in record} == {
        "000.png",
        "001.png",
    }


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("another", {}, r"another model \(weights: 'fake', now 'another'\)"),
        ("fake", {"task": "instance"}, r"another task \('panoptic', now 'instance'\)"),
        ("fake", {"options": {"opts": ["KEY", "1"]}}, r"another options \(opts: None, now \['KEY', '1'\]\)"),
        ("fake", {"masks": "none"}, r"another masks \('rle', now 'none'\)"),
        ("fake", {"form": "parquet"}, r"another format \('jsonl', now 'parquet'\)"),
        ("fake", {"task": "semantic"}, r"--task 'semantic' is not one of this model's: panoptic, instance"),
    ],
)
def test_another_model_or_task_is_refused(pictures, uninterrupted, name, settings, message):
    with pytest.raises(ValueError, match=message):
        fake.dataset_run(name, **settings).prepare(find_inputs(str(pictures)), uninterrupted[0])


def test_pictures_of_another_folder_are_refused(uninterrupted, tmp_path):
    fake.write_pictures(tmp_path, 1)
    with pytest.raises(ValueError, match="another input"):
        fake.dataset_run().prepare(find_inputs(str(tmp_path)), uninterrupted[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "spark"}, "--engine 'spark' is unknown; choose from local, ray"),
        ({"masks": "png"}, "--masks 'png' is unknown; choose from rle, polygons, none"),
        ({"num_workers": (3, 2)}, r"--workers 3\.\.2 must be"),
        ({"num_workers": (1, 2)}, "only --engine ray changes the number of workers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fake.dataset_run(**settings)
