"""The service's routes and their OpenAPI description."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect

from mask2former import __version__
from mask2former.deploy.runtime import Segmenter

from .logs import RequestLog
from .metrics import METRICS_MEDIA_TYPE, Metrics
from .models import ClassDescription, Health, Limits, ModelDescription, SegmentationAnswer
from .page import add_pages
from .problems import Problem, ServiceError, add_problem_handlers, problem_responses
from .service import Service
from .settings import ServiceSettings

__all__ = ["create_app"]

_SUMMARY = "Panoptic, instance and semantic segmentation of single pictures."
_GEOJSON_SCHEMA = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {"type": {"const": "FeatureCollection"}, "features": {"type": "array", "items": {"type": "object"}}},
}
_SEGMENT_CONTENT = {
    "image/png": {"schema": {"type": "string", "format": "binary"}},
    "application/geo+json": {"schema": _GEOJSON_SCHEMA},
}
#: No answer may be kept by caches, taken for another type, or shown inside another site.
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff", "x-frame-options": "DENY"}
_BEARER = HTTPBearer(auto_error=False)
_HUNG_UP = 499  # what web servers write into their logs; it is never sent


def create_app(segmenter: Segmenter, settings: ServiceSettings | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        segmenter: what `mask2former.deploy.load` gave; from now on it is called by the application's thread only.
        settings: None: the defaults.
    """
    settings = settings or ServiceSettings()
    metrics = Metrics(settings.max_batch_size)
    service = Service(segmenter, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPI(
        title="Mask2Former", version=__version__, summary=_SUMMARY, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's own way to change the description
    app.add_middleware(RequestLog, metrics=metrics, headers=_HEADERS)
    add_problem_handlers(app)

    @app.exception_handler(ClientDisconnect)
    async def note_hang_up(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_HUNG_UP)

    guard = [Depends(_token_check(settings.token))] if settings.token else []
    refusals = [401] if settings.token else []
    _add_segmentation(app, service, guard, refusals)
    _add_descriptions(app, _describe(segmenter, settings), metrics, guard, refusals)
    _add_probes(app, service)
    add_pages(app)
    return app


def _add_segmentation(app: FastAPI, service: Service, guard: list[Any], refusals: list[int]) -> None:
    statuses = (*refusals, 400, 408, 413, 415, 422, 429, 500, 503, 504)

    @app.post(
        "/v1/segment",
        tags=["segmentation"],
        dependencies=guard,
        response_model=SegmentationAnswer,
        responses={**problem_responses(*statuses), 200: {"content": _SEGMENT_CONTENT}},
        openapi_extra={"requestBody": service.uploads.request_body()},
    )
    async def segment(request: Request) -> Response:
        """Segments one picture.

        JPEG, PNG, WebP, TIFF, BMP or GIF: the first frame or page, turned as its EXIF data ask for, as RGB.
        Transparency is dropped, of 16 bits the upper eight are used.
        """
        return await service.segment(request)


def _add_descriptions(
    app: FastAPI, description: ModelDescription, metrics: Metrics, guard: list[Any], refusals: list[int]
) -> None:
    @app.get("/v1/model", tags=["segmentation"], dependencies=guard, responses=problem_responses(*refusals))
    async def describe_model() -> ModelDescription:
        """Tasks, classes and limits."""
        return description

    figures: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get(
        "/metrics",
        tags=["operation"],
        dependencies=guard,
        response_class=Response,
        responses={**problem_responses(*refusals), **figures},
    )
    async def read_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type=METRICS_MEDIA_TYPE)


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operation"], responses=problem_responses(503))
    async def check_health() -> Health:
        """Whether the process works; if not, it should be started again."""
        service.check_health()
        return Health()

    @app.get("/readyz", tags=["operation"], responses=problem_responses(503))
    async def check_readiness() -> Health:
        """Whether requests should be sent now."""
        service.check_readiness()
        return Health()


def _token_check(token: str) -> Callable[..., Awaitable[None]]:
    """A dependency that lets only requests with this bearer token through."""
    expected = token.encode()

    async def check_token(credentials: HTTPAuthorizationCredentials | None = Depends(_BEARER)) -> None:  # noqa: B008
        given = credentials.credentials.encode() if credentials else b""
        if not hmac.compare_digest(given, expected):
            what = "the bearer token is wrong" if given else "a bearer token is needed: Authorization: Bearer ..."
            raise ServiceError(401, what, {"WWW-Authenticate": "Bearer"})

    return check_token


def _describe(segmenter: Segmenter, settings: ServiceSettings) -> ModelDescription:
    return ModelDescription(
        tasks=list(segmenter.tasks),
        classes=[
            ClassDescription(name=info.name, color=info.color, dataset_id=info.dataset_id, is_thing=info.is_thing)
            for info in segmenter.classes
        ],
        limits=Limits(
            max_upload_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_pixels,
            timeout_seconds=settings.timeout_seconds,
        ),
        description=segmenter.description,
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema
