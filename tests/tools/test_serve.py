"""tools/serve.py: starts with a real model, ends without losing a request, and says why it cannot start."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx", reason="pip install 'mask2former[dev]'")
pytest.importorskip("fastapi", reason="pip install 'mask2former[deploy]'")

from tests.deploy.serving.fakes import png, wait_until  # noqa: E402  # needs both

ROOT = Path(__file__).parents[2]
MODEL = "weights/digits_panoptic.safetensors"


@pytest.fixture
def main(monkeypatch):
    monkeypatch.chdir(ROOT)
    main = runpy.run_path("tools/serve.py", run_name="serve")["main"]
    monkeypatch.setitem(main.__globals__, "log_to_stdout", lambda: None)  # the log of the tests stays as it is
    return main


def test_a_model_is_served_until_sigterm_and_what_was_accepted_is_answered(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASK2FORMER_TOKEN": "from outside"}
    command = [sys.executable, "tools/serve.py", MODEL, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as service:
        try:
            events = (json.loads(line) for line in service.stdout)
            url = next(event["url"] for event in events if event["message"] == "listening")
            client = httpx.Client(base_url=url, headers={"authorization": "Bearer from outside"}, timeout=60)
            assert httpx.get(f"{url}v1/model").status_code == 401
            wait_until(lambda: client.get("/readyz").status_code == 200)
            files = {"picture": ("a.png", png(1500, 1500))}  # takes a while
            with ThreadPoolExecutor(1) as other:
                answer = other.submit(client.post, "/v1/segment", files=files, data={"task": "semantic"})
                wait_until(lambda: "mask2former_pending_requests 1.0" in client.get("/metrics").text)
                service.send_signal(signal.SIGTERM)
                assert answer.result().status_code == 200 and answer.result().json()["width"] == 1500
            rest = list(events)
            assert service.wait(30) == -signal.SIGTERM
        finally:
            service.kill()
    assert any(event["message"] == "request" and event.get("task") == "semantic" for event in rest)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.pth"], "'missing.pth' does not exist"),
        ([MODEL, "--max-pending", "0"], "max_pending=0"),
        ([MODEL, "--token-file", "/dev/null"], "is empty"),
        ([MODEL, "--token-file", "missing"], "missing"),
        ([MODEL, "--config-file", "configs/nothing.yaml"], "configs/nothing.yaml"),
        ([MODEL, "--port", "99999"], "port 99999"),
        (["tests"], "tests"),  # a folder that holds no model
    ],
)
def test_what_is_wrong_is_said_before_anything_is_served(main, capsys, arguments, words):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("serve.py: error: ") and words in error


def test_a_port_that_is_taken_is_named(main, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([MODEL, "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_the_token_comes_from_the_file_or_the_environment(main, tmp_path, monkeypatch):
    read_token = main.__globals__["read_token"]
    monkeypatch.delenv("MASK2FORMER_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("MASK2FORMER_TOKEN", "outside")
    (tmp_path / "token").write_text("inside\n")
    assert read_token(None) == "outside" and read_token(str(tmp_path / "token")) == "inside"
