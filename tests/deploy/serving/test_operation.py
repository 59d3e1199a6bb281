"""What operators see: metrics, log lines, request ids; and what browsers are told."""

from __future__ import annotations

import io
import json
import logging
import re
from dataclasses import asdict

import pytest

from mask2former.deploy.serving.logs import JsonFormatter
from mask2former.deploy.serving.page import content_security_policy
from tests.deploy.serving.fakes import CLASSES, POISON, png, service


@pytest.fixture
def client():
    with service(max_pixels=5000) as client:
        yield client


def post(client, value=None, **options):
    return client.post("/v1/segment", files={"picture": ("a.png", png(value=value))}, **options)


def metrics(client):
    """Name with labels -> value."""
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_requests_batches_and_pictures_are_counted(client):
    before = metrics(client)
    assert [post(client).status_code, post(client, POISON).status_code] == [200, 500]
    client.get("/made/up/1"), client.get("/made/up/2")
    after = metrics(client)

    def growth(name):
        return after.get(name, 0) - before.get(name, 0)

    request = 'mask2former_requests_total{{method="{}",path="{}",status="{}"}}'.format
    assert growth(request("POST", "/v1/segment", 200)) == growth(request("POST", "/v1/segment", 500)) == 1
    assert growth(request("GET", "other", 404)) == 2
    assert growth('mask2former_pictures_total{output="json",task="panoptic"}') == 1
    assert growth("mask2former_batch_size_count") == growth("mask2former_waiting_seconds_count") == 1
    assert after["mask2former_pending_requests"] == 0 and after["process_resident_memory_bytes"] > 0


def test_two_services_count_apart():
    with service() as first, service() as second:
        post(first)
        assert not any(name.startswith("mask2former_pictures_total") for name in metrics(second))


def test_a_log_line_says_what_happened_to_a_request(client, caplog):
    with caplog.at_level(logging.INFO, logger="mask2former.deploy.serving"):
        answer = post(client, headers={"x-request-id": "from-the-client.7"})
    (record,) = [record for record in caplog.records if record.message == "request" and record.path == "/v1/segment"]
    line = json.loads(JsonFormatter().format(record))
    assert line["request_id"] == answer.headers["x-request-id"] == "from-the-client.7"
    assert (line["level"], line["status"], line["task"], line["output"]) == ("info", 200, "panoptic", "json")
    assert (line["height"], line["width"], line["batch_size"]) == (20, 30, 1)
    assert line["picture_bytes"] == len(png()) and line["seconds"] >= line["waited"] >= 0


@pytest.mark.parametrize("wish", ["", "two words", "a" * 65, 'quote"', b"line\nbreak", "ä".encode()])
def test_ids_that_could_confuse_a_log_are_replaced(client, wish):
    assert re.fullmatch("[0-9a-f]{32}", client.get("/healthz", headers={"x-request-id": wish}).headers["x-request-id"])


def test_whatever_is_logged_stays_one_line_of_json():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("a\nb", extra={"thing": object()})
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "a\nb" and "first\nsecond" in json.loads(line)["traceback"]


def test_the_model_is_described(client):
    content = client.get("/v1/model").json()
    assert content["tasks"] == ["panoptic", "instance", "semantic"]
    assert content["classes"] == [asdict(info) | {"color": list(info.color)} for info in CLASSES]
    assert content["limits"]["max_pixels"] == 5000 and content["description"]["format"] == "fake"


def test_answers_may_not_be_kept_or_framed(client):
    for answer in (client.get("/healthz"), post(client), client.get("/nothing"), client.get("/")):
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_api_is_described_for_people_without_scripts(client):
    answer = client.get("/docs")
    assert "script-src 'none'" in answer.headers["content-security-policy"] and "<script" not in answer.text
    description = client.get("/openapi.json").json()
    for word in [*description["paths"], *description["components"]["schemas"], "threshold", "429", "label_map"]:
        assert word in answer.text
    links = set(re.findall(r'href="#(\w+)"', answer.text))
    assert links and links <= set(re.findall(r'id="(\w+)"', answer.text))


def test_the_page_may_load_and_call_nothing_but_its_own_service(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy == content_security_policy(answer.text)
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert policy.count("'sha256-") == 2
    html = answer.text
    # What the policy would block: event handlers and styles in attributes. What must not be there: other addresses.
    assert not re.search(r"\son\w+=|\sstyle=", html)
    assert set(re.findall(r"https?://[^\s'\"<>]+", html)) <= {"http://www.w3.org/2000/svg"}
