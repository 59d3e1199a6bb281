"""Too much, too slow, gone: queues that are full, time that is over, clients that hang up, the end of the service."""

from __future__ import annotations

import asyncio
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from fastapi.testclient import TestClient

from mask2former.deploy.serving import create_app
from tests.deploy.serving.fakes import FakeSegmenter, listening_service, png, service, wait_until

NUM_CONNECTIONS = 1000


def post(client, **options):
    return client.post("/v1/segment", files={"picture": ("a.png", png())}, **options)


def pending(client):
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("mask2former_pending_requests ")).split()[1])


def raw_request(body=None, length=None):
    body = png() if body is None else body
    part = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n' + body + b"\r\n--b--\r\n"
    head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: {length or len(part)}\r\n"
    return head.encode() + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + part


def test_whoever_comes_when_all_places_are_taken_is_told_when_to_come_back():
    segmenter = FakeSegmenter()
    with service(segmenter, max_pending=2) as client, ThreadPoolExecutor(2) as others:
        segmenter.gate.clear()
        accepted = [others.submit(post, client) for _ in range(2)]
        wait_until(lambda: pending(client) == 2)
        refused = post(client)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "2 requests are under way" in refused.json()["detail"]
        segmenter.gate.set()
        assert [answer.result().status_code for answer in accepted] == [200, 200]
        assert post(client).status_code == 200


def test_pictures_that_come_together_share_a_batch():
    segmenter = FakeSegmenter()
    with service(segmenter, max_batch_size=4) as client, ThreadPoolExecutor(5) as others:
        segmenter.gate.clear()
        first = others.submit(post, client)
        wait_until(lambda: len(segmenter.batches) == 2)  # beside the one of the start
        more = [others.submit(post, client) for _ in range(4)]
        wait_until(lambda: pending(client) == 5)
        segmenter.gate.set()
        assert all(answer.result().status_code == 200 for answer in (first, *more))
    assert sum(segmenter.batches[1:]) == 5 and len(segmenter.batches) <= 4


def test_time_that_is_over_is_said_and_what_waits_is_never_computed():
    segmenter = FakeSegmenter()
    with service(segmenter, timeout_seconds=0.5, max_batch_size=1, max_wait_seconds=0) as client:
        segmenter.gate.clear()
        with ThreadPoolExecutor(1) as others:
            running = others.submit(post, client)
            wait_until(lambda: len(segmenter.batches) == 2)
            waiting = post(client)
            assert waiting.status_code == 503 and "turn did not come" in waiting.json()["detail"]
            assert int(waiting.headers["retry-after"]) >= 1
            assert running.result().status_code == 504 and "did not finish" in running.result().json()["detail"]
        segmenter.gate.set()
        assert post(client).status_code == 200
    assert len(segmenter.batches) == 3  # start, running, last


def test_a_body_that_does_not_come_gives_its_place_up():
    with listening_service(timeout_seconds=0.3, max_pending=1) as (address, _):
        with socket.create_connection(address, timeout=20) as slow:
            slow.sendall(raw_request(length=100_000))
            answer = slow.makefile("rb").read()  # to the end: it is closed
        assert b" 408 " in answer and b"did not arrive within 0.3 seconds" in answer
        assert post(httpx.Client(base_url="http://{}:{}".format(*address))).status_code == 200


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b"])
def test_a_body_without_end_is_given_up(content_type):
    head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with listening_service(max_upload_bytes=100_000) as (address, _):
        with socket.create_connection(address, timeout=20) as endless:
            start = b"{" if content_type == "application/json" else raw_request().partition(b"\r\n\r\n")[2][:100]
            endless.sendall(head.encode() + f"{len(start):x}\r\n".encode() + start + b"\r\n")
            for _ in range(8):  # four times what is accepted
                with suppress(ConnectionError):  # it may be closed by now
                    endless.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")
            assert b" 413 " in endless.recv(10_000)
        assert post(httpx.Client(base_url="http://{}:{}".format(*address))).status_code == 200


def test_a_client_that_hangs_up_frees_its_place_and_is_not_computed():
    segmenter = FakeSegmenter()
    with listening_service(segmenter, max_pending=2, max_batch_size=1, max_wait_seconds=0) as (address, _):
        client = httpx.Client(base_url="http://{}:{}".format(*address))
        wait_until(lambda: client.get("/readyz").status_code == 200)
        segmenter.gate.clear()
        with ThreadPoolExecutor(1) as others:
            running = others.submit(post, client)
            wait_until(lambda: len(segmenter.batches) == 2)
            with socket.create_connection(address) as impatient:
                impatient.sendall(raw_request())
                wait_until(lambda: pending(client) == 2)
            wait_until(lambda: pending(client) == 1)
            with socket.create_connection(address) as half:
                half.sendall(raw_request()[:200])  # hangs up in the middle of the body
                wait_until(lambda: pending(client) == 2)
            wait_until(lambda: pending(client) == 1)
            segmenter.gate.set()
            assert running.result().status_code == 200
        wait_until(lambda: pending(client) == 0)
        assert 'status="499"' in client.get("/metrics").text
    assert len(segmenter.batches) == 2


def test_the_service_answers_probes_while_the_model_works():
    segmenter = FakeSegmenter()
    with service(segmenter) as client, ThreadPoolExecutor(1) as others:
        segmenter.gate.clear()
        running = others.submit(post, client)
        wait_until(lambda: len(segmenter.batches) == 2)
        assert client.get("/healthz").status_code == 200 and client.get("/v1/model").status_code == 200
        assert not running.done()
        segmenter.gate.set()
        assert running.result().status_code == 200


@pytest.fixture
def many_open_files():
    """Both ends of every connection are in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * NUM_CONNECTIONS
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip(f"this machine allows only {before[1]} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_open_files")
def test_a_thousand_connections_are_all_answered():
    async def one(address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(raw_request())
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), b"retry-after" in head.lower()

    async def all_at_once(address):
        return await asyncio.gather(*(one(address) for _ in range(NUM_CONNECTIONS)))

    with listening_service(max_pending=16) as (address, _):
        answers = asyncio.run(all_at_once(address))
        assert len(answers) == NUM_CONNECTIONS
        assert {status for status, _ in answers} <= {200, 429}
        assert all(has_header == (status == 429) for status, has_header in answers)
        assert sum(status == 200 for status, _ in answers) >= 16
        assert post(httpx.Client(base_url="http://{}:{}".format(*address))).status_code == 200


def test_the_end_waits_for_accepted_requests_and_takes_no_new_ones():
    segmenter = FakeSegmenter()
    with listening_service(segmenter, max_batch_size=2) as (address, server), ThreadPoolExecutor(6) as others:
        url = "http://{}:{}".format(*address)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        segmenter.gate.clear()
        accepted = [others.submit(post, httpx.Client(base_url=url)) for _ in range(6)]
        watcher = httpx.Client(base_url=url)
        wait_until(lambda: pending(watcher) == 6)
        server.should_exit = True
        wait_until(lambda: not server.servers or not any(one.is_serving() for one in server.servers))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz")
        segmenter.gate.set()
        assert [answer.result().status_code for answer in accepted] == [200] * 6


def test_a_service_is_ready_when_its_model_has_worked_once():
    segmenter = FakeSegmenter()
    segmenter.gate.clear()
    with TestClient(create_app(segmenter)) as client:
        early = client.get("/readyz")
        assert early.status_code == 503 and "warming up" in early.json()["detail"]
        assert client.get("/healthz").status_code == 200
        segmenter.gate.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)


def test_a_service_whose_model_fails_is_never_ready(monkeypatch):
    def fail(self, images, task=None):
        raise RuntimeError("broken")

    monkeypatch.setattr(FakeSegmenter, "__call__", fail)
    with TestClient(create_app(FakeSegmenter())) as client:
        wait_until(lambda: "the model fails" in client.get("/readyz").json()["detail"])
        assert client.get("/readyz").status_code == 503 and post(client).status_code == 500
