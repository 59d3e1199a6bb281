"""What each replica serves and which arguments are refused; Ray itself is not started."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
serve = pytest.importorskip("ray.serve")
from fastapi.testclient import TestClient  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from mask2former.deploy.ray_serve import Arguments, _builder, application  # noqa: E402
from mask2former.deploy.serving import ServiceSettings  # noqa: E402

CHECKPOINT = Path(__file__).parents[2] / "weights" / "digits_panoptic.safetensors"


def picture() -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_replica_serves_the_model_behind_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_TOKEN", "secret")
    build = _builder(Arguments(model=str(CHECKPOINT)), ServiceSettings(max_batch_size=3))
    with TestClient(build()) as client:
        files = {"picture": ("a.png", picture(), "image/png")}
        refused = client.post("/v1/segment", files=files)
        answered = client.post("/v1/segment", files=files, headers={"Authorization": "Bearer secret"})
    assert refused.status_code == 401
    assert answered.status_code == 200
    assert (answered.json()["height"], answered.json()["width"]) == (24, 32)


def test_arguments_reach_the_deployment() -> None:
    arguments = Arguments(model=str(CHECKPOINT), min_replicas=2, max_replicas=5, num_cpus=3, max_pending=7)
    deployment = application(arguments)._bound_deployment
    assert deployment.name == "Mask2Former"
    assert deployment.max_ongoing_requests == 7
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert deployment.ray_actor_options["num_cpus"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "1 <= min <= max"),
        ({"num_cpus": 0}, "at least 1"),
        ({"model": "nowhere"}, "does not exist"),
        ({"replicas": 2}, "Extra inputs"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Arguments(**{"model": str(CHECKPOINT), **arguments})  # type: ignore[arg-type]
