"""What a user can cure is said in one paragraph."""

from __future__ import annotations

import sys

import pytest
from detectron2.utils import comm

from mask2former.engine import short_errors, user_errors


@pytest.mark.parametrize("kind", [FileNotFoundError, ImportError, KeyError, ValueError])
def test_what_a_user_can_cure_ends_the_program_with_its_name_and_the_message(monkeypatch, kind):
    monkeypatch.setattr(sys, "argv", ["somewhere/train_net.py"])
    with pytest.raises(SystemExit) as stopped, short_errors():
        raise kind("a key is missing")
    assert stopped.value.code == "train_net.py: error: a key is missing"


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError, TypeError])
def test_anything_else_keeps_its_traceback(kind):
    with pytest.raises(kind), short_errors():
        raise kind("a mistake of ours")


@pytest.mark.parametrize(("local_rank", "waits"), [(0, False), (1, True)])
def test_the_first_process_of_a_machine_speaks_first(monkeypatch, local_rank, waits):
    waited = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_local_rank", lambda: local_rank)
    monkeypatch.setattr(user_errors.time, "sleep", waited.append)
    with pytest.raises(SystemExit, match="only here"), short_errors():
        raise ValueError("only here")
    assert bool(waited) == waits
