"""Bad input: each kind has its status and a sentence, and the service goes on."""

from __future__ import annotations

import base64
import json
import sys

import pytest

from mask2former.deploy.serving import ServiceSettings
from mask2former.deploy.serving.problems import Problem
from tests.deploy.serving.fakes import POISON, png, service
from tests.deploy.test_decoding import VALID, encoded, noise, png_head

LIMITS = {"max_upload_bytes": 100_000, "max_pixels": 1_000_000}
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def client():
    with service(**LIMITS) as client:
        yield client
        assert send(client, png()).status_code == 200  # after all that, it still serves


def send(client, data, **fields):
    return client.post("/v1/segment", files={"picture": ("a.png", data)}, data=fields)


def send_json(client, **content):
    return client.post("/v1/segment", json=content)


def assert_refused(answer, status, *words):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status and problem.request_id == answer.headers["x-request-id"]
    for word in words:
        assert word in problem.detail
    return problem


@pytest.mark.parametrize("name", VALID)
def test_every_kind_of_picture_is_accepted(client, name):
    answer = send(client, VALID[name])
    assert answer.status_code == 200, answer.text
    expected = {"turned": (40, 30), "one pixel": (1, 1)}.get(name, (30, 40))
    assert (answer.json()["height"], answer.json()["width"]) == expected


@pytest.mark.parametrize("output", ["json", "overlay", "label_map", "geojson"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_the_smallest_pictures_have_every_output(client, size, output):
    assert send(client, png(*size), output=output, masks="polygons").status_code == 200


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"hello", 422, "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "no picture"),
        (b"", 422, "missing or empty"),
        (png()[:200], 422, "damaged or cut off"),
        (png_head(0, 0), 422, "no picture"),
        (png_head(50_000, 50_000), 413, "1,000,000"),
        (png_head(1001, 1000), 413, "1001 x 1000"),
        (encoded(noise().convert("F"), "TIFF"), 422, "32-bit floats"),
        (png(200, 200), 413, "100,000 bytes"),
    ],
    ids=["text", "svg", "empty", "truncated", "0x0", "50000x50000", "pixels", "floats", "bytes"],
)
def test_what_is_no_acceptable_picture_is_refused(client, data, status, word):
    assert_refused(send(client, data), status, word)
    if data:
        assert_refused(send_json(client, picture=base64.b64encode(data).decode()), status, word)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"task": "depth"}, "'panoptic', 'instance' or 'semantic'"),
        ({"output": "pdf"}, "output"),
        ({"masks": "png"}, "masks"),
        ({"threshold": "1.5"}, "threshold"),
        ({"threshold": "nan"}, "threshold"),
        ({"treshold": "0.5"}, "treshold"),
    ],
)
def test_unknown_and_impossible_options_are_named(client, fields, word):
    assert_refused(send(client, png(), **fields), 422, word)
    assert_refused(send_json(client, picture=base64.b64encode(png()).decode(), **fields), 422, word)


@pytest.mark.parametrize("threshold", [False, True, "0.5", [0.5]])
def test_only_a_number_is_a_threshold_in_json(client, threshold):
    body = {"picture": base64.b64encode(png()).decode()}
    assert send_json(client, **body, threshold=0).status_code == 200
    assert_refused(send_json(client, **body, threshold=threshold), 422, "threshold")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("data:image/png;base64,AAAA", "base64"),
        ("http://example.com/a.png", "base64"),
        ("/etc/passwd", "base64"),
        ("", "base64"),
        (5, "base64"),
        (None, "base64"),
        ("ä", "ASCII"),
    ],
)
def test_what_is_no_base64_is_refused(client, text, word):
    assert_refused(send_json(client, picture=text), 422, "picture", word)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[]", 422, "object"),
        (b"{}", 422, "picture"),
        (b"null", 422, "object"),
    ],
)
def test_json_that_is_no_request_is_refused(client, body, status, word):
    answer = client.post("/v1/segment", content=body, headers={"content-type": "application/json"})
    assert_refused(answer, status, word)


@pytest.mark.parametrize(
    "content_type", ["", "image/png", "text/plain", "application/x-www-form-urlencoded", "nonsense"]
)
def test_other_content_types_are_refused(client, content_type):
    headers = {"content-type": content_type} if content_type else {}
    assert_refused(client.post("/v1/segment", content=png(), headers=headers), 415, "multipart/form-data")


def part(name, content, filename=None):
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


@pytest.mark.parametrize(
    ("content_type", "body", "status", "word"),
    [
        ("multipart/form-data", part("picture", png(), "a") + b"--b--", 400, "boundary"),
        (FORM, b"garbage", 400, "form"),
        (FORM, b"--b\r\nno header\r\n\r\n", 400, "form"),
        (FORM, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", 400, "name"),
        (FORM, b"--b--", 422, "'picture' is missing"),
        (FORM, b"", 422, "'picture' is missing"),
        (FORM, part("picture", png(), "a"), 422, "'picture' is missing"),  # cut off before the last boundary
        (FORM, part("picture", b"text") + b"--b--", 422, "must be a file"),
        (FORM, part("file", png(), "a") + b"--b--", 422, "'picture'"),
        (FORM, part("picture", png(), "a") * 2 + b"--b--", 400, "Too many files"),
        (FORM, part("task", b"panoptic") * 2 + part("picture", png(), "a") + b"--b--", 422, "twice"),
        (FORM, part("task", b"x" * 5000) + b"--b--", 400, "maximum size"),
    ],
)
def test_forms_that_are_no_request_are_refused(client, content_type, body, status, word):
    answer = client.post("/v1/segment", content=body, headers={"content-type": content_type})
    assert_refused(answer, status, word)


@pytest.mark.parametrize("content_type", ["application/json", FORM])
def test_a_body_that_says_it_is_too_long_is_not_waited_for(client, content_type):
    headers = {"content-type": content_type, "content-length": str(10**9)}
    assert_refused(client.post("/v1/segment", content=b"", headers=headers), 413, "100,000 bytes")


def test_no_name_that_a_client_sends_reaches_the_disk(client):
    opened = []
    is_watched = True

    def watch(event, arguments):
        if is_watched and event in ("open", "os.mkdir", "os.rename", "shutil.move"):
            opened.append(str(arguments[0]))

    send(client, png())  # whatever is imported or read once has been
    sys.addaudithook(watch)  # hooks stay for ever
    try:
        for name in ("/etc/passwd", "../../evil.png", "C:\\evil.png", "a\x00b"):
            files = {"picture": (name, png(170, 170))}
            assert client.post("/v1/segment", files=files, data={"output": "label_map"}).status_code == 200
    finally:
        is_watched = False
    assert opened == []


def test_paths_of_this_machine_are_no_paths_of_the_service(client):
    for path in ("/../etc/passwd", "/static/../../etc/passwd", "/%2e%2e/etc/passwd", "/page.html"):
        assert_refused(client.get(path), 404)
    assert_refused(client.get("/v1/segment"), 405, "GET")
    assert client.get("/v1/segment").headers["allow"] == "POST"


def test_a_picture_on_which_the_model_fails_is_a_500_without_its_insides(client):
    problem = assert_refused(send(client, png(value=POISON)), 500, "model failed")
    assert "poison" not in json.dumps(problem.model_dump())


@pytest.fixture(scope="module")
def guarded():
    with service(token="secret word") as client:
        yield client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", "Basic secret word", "bearer secret wor", "Bearer ä".encode()],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/segment"), ("GET", "/v1/model"), ("GET", "/metrics")])
def test_nothing_is_answered_without_the_token(guarded, method, path, header):
    headers = {} if header is None else {"authorization": header}
    answer = guarded.request(method, path, headers=headers)
    assert_refused(answer, 401, "bearer token")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_token_opens_everything(guarded):
    headers = {"authorization": "Bearer secret word"}
    files = {"picture": ("a.png", png())}
    assert guarded.post("/v1/segment", files=files, headers=headers).status_code == 200
    assert guarded.get("/v1/model", headers=headers).status_code == 200
    assert guarded.get("/metrics", headers=headers).status_code == 200


def test_probes_and_page_need_no_token(guarded):
    assert [guarded.get(path).status_code for path in ("/", "/healthz", "/readyz", "/openapi.json")] == [200] * 4


def test_the_token_is_not_in_what_a_log_would_show():
    assert "secret" not in repr(ServiceSettings(token="secret word"))


@pytest.mark.parametrize(
    "setting",
    [
        {"max_batch_size": 0},
        {"max_pending": -1},
        {"timeout_seconds": 0},
        {"max_wait_seconds": -1},
        {"token": "a\nb"},
        {"token": " "},
    ],
)
def test_impossible_settings_are_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting)).partition("_")[0]):
        ServiceSettings(**setting)
