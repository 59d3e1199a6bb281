"""The Ray engine: two actors give what local workers give, and a restart does only the rest."""

from __future__ import annotations

import pytest

from mask2former.deploy.dataset.inputs import find_inputs
from tests.deploy.dataset import fake
from tests.deploy.dataset.test_run import records

pytest.importorskip("ray.data")


def test_a_cluster_gives_what_one_machine_gives_and_continues(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fake.write_pictures(tmp_path / "pictures", 30, {7: fake.GRAY})
    (tmp_path / "pictures" / "010.png").write_bytes(b"no picture")
    (tmp_path / "begin.txt").write_text("\n".join(f"pictures/{index:03d}.png" for index in range(6)))
    (tmp_path / "list.txt").write_text("\n".join(f"pictures/{index:03d}.png" for index in range(30)))

    def run(source, output, **settings):
        return fake.dataset_run(**settings).prepare(find_inputs(str(tmp_path / source)), tmp_path / output)()

    run("list.txt", "local")
    run("begin.txt", "ray")
    summary = run("list.txt", "ray", engine="ray")
    assert (summary.num_new, summary.num_left, summary.num_broken) == (24, 0, 2)
    assert records(tmp_path / "ray") == records(tmp_path / "local")
