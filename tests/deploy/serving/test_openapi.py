"""The OpenAPI description: complete, and true for whatever it allows and forbids (checked by schemathesis)."""

from __future__ import annotations

import base64
import re

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former.deploy.serving import ServiceSettings, create_app
from tests.deploy.serving.fakes import FakeSegmenter, listening_service, png, wait_until
from tests.deploy.test_decoding import VALID

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'mask2former[dev]'")
GenerationMode = schemathesis.GenerationMode

PICTURES = st.sampled_from([png(), png(1, 1), VALID["jpeg"], VALID["palette"]])
# What the description cannot say: that these strings are pictures.
schemathesis.openapi.format("byte", PICTURES.map(lambda data: base64.b64encode(data).decode()))
schemathesis.openapi.format("binary", PICTURES)

STATUSES = {
    ("post", "/v1/segment"): {200, 400, 408, 413, 415, 422, 429, 500, 503, 504},
    ("get", "/v1/model"): {200},
    ("get", "/metrics"): {200},
    ("get", "/healthz"): {200, 503},
    ("get", "/readyz"): {200, 503},
}


@pytest.fixture(scope="module")
def app():
    return create_app(FakeSegmenter())


@pytest.fixture(scope="module")
def api():
    with listening_service(max_wait_seconds=0) as (address, _):
        url = "http://{}:{}".format(*address)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((method, path, GenerationMode.POSITIVE) for method, path in STATUSES),
        ("post", "/v1/segment", GenerationMode.NEGATIVE),  # the others have no fields that could be wrong
    ],
)
def test_the_service_does_what_its_description_says(api, method, path, mode):
    @settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def call(case):
        case.call_and_validate()

    call()


def test_every_status_is_described(app):
    described = {
        (method, path): {int(status) for status in operation["responses"]}
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    assert described == STATUSES


def test_a_token_is_part_of_the_description_where_one_is_needed():
    description = create_app(FakeSegmenter(), ServiceSettings(token="secret")).openapi()
    guarded = {path for path, operations in description["paths"].items() if "security" in str(operations)}
    assert guarded == {"/v1/segment", "/v1/model", "/metrics"}
    assert all("401" in next(iter(description["paths"][path].values()))["responses"] for path in guarded)
    assert description["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_what_is_referred_to_exists(app):
    description = app.openapi()
    names = set(re.findall(r"'#/components/schemas/(\w+)'", str(description)))
    assert names and names <= set(description["components"]["schemas"])


def test_a_model_with_one_task_offers_no_other():
    segmenter = FakeSegmenter()
    segmenter.tasks = ("semantic",)
    body = create_app(segmenter).openapi()["paths"]["/v1/segment"]["post"]["requestBody"]["content"]
    for content in body.values():
        task = content["schema"]["properties"]["task"]
        assert task["default"] == "semantic" and task.get("enum", [task.get("const")]) == ["semantic"]
