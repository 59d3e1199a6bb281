"""Refusals in words: every error is answered with the same JSON object (RFC 9457) and the right status."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

__all__ = ["PROBLEM_MEDIA_TYPE", "Problem", "ServiceError", "add_problem_handlers", "problem_responses"]

PROBLEM_MEDIA_TYPE = "application/problem+json"

#: What a client learns about each status from the OpenAPI description.
_MEANINGS = {
    400: "The body is not what its content type says.",
    401: "The bearer token is missing or wrong.",
    408: "The body did not arrive in time.",
    413: "The upload has more bytes, or the picture more pixels, than are accepted.",
    415: "The body is neither multipart/form-data nor application/json.",
    422: "A field is missing, unknown or has a wrong value, or the picture cannot be decoded.",
    429: "As many requests as the service takes at a time are under way.",
    500: "The model failed on this picture.",
    503: "The service is starting or shutting down, or the picture's turn did not come in time.",
    504: "The model did not finish in time.",
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds after which to come back.", "schema": {"type": "integer", "minimum": 1}}
}


class Problem(BaseModel):
    """Why a request was not served (RFC 9457)."""

    title: str = Field(description="The name of the status.", examples=["Unprocessable Content"])
    status: int = Field(description="The HTTP status, again.", examples=[422])
    detail: str = Field(description="What is wrong and how to cure it.")
    request_id: str = Field(description="What the service's log calls this request.")


class ServiceError(Exception):
    """Ends a request with a status and a sentence.

    Args:
        status: one of those of `problem_responses`.
        detail: a sentence for the client.
        headers: added to the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a FastAPI route that can be refused with these statuses."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        schema = {"$ref": "#/components/schemas/Problem"}
        responses[status] = {"description": _MEANINGS[status], "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}}}
        if status in (429, 503):
            responses[status]["headers"] = _RETRY_AFTER
    return responses


def add_problem_handlers(app: FastAPI) -> None:
    """Answers `ServiceError`, unknown paths and methods, and failures of our own with a `Problem`."""

    @app.exception_handler(ServiceError)
    async def refuse(request: Request, error: ServiceError) -> JSONResponse:
        return problem_response(request, error.status, error.detail, error.headers)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        details = {
            404: f"there is nothing at {request.url.path}; GET /docs lists what there is",
            405: f"{request.url.path} does not answer {request.method}",
        }
        detail = details.get(error.status_code, str(error.detail))
        return problem_response(request, error.status_code, detail, dict(error.headers or {}))

    @app.exception_handler(Exception)  # the middleware has logged it; what it was is nobody else's business
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return problem_response(request, 500, "the service failed; its log says why", {})


def problem_response(request: Request, status: int, detail: str, headers: Mapping[str, str]) -> JSONResponse:
    problem = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, request_id=request.scope["state"]["request_id"]
    )
    return JSONResponse(problem.model_dump(), status, dict(headers), media_type=PROBLEM_MEDIA_TYPE)
