"""One JSON object a line for every request and event, and the request ids that tie them to answers."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from datetime import datetime, timezone
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

__all__ = ["JsonFormatter", "RequestLog", "log_to_stdout"]

_LOG = logging.getLogger("mask2former.deploy.serving.requests")
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
#: An id that clients may choose themselves, to follow a request through several services.
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, logger, message, its `extra` fields, the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stdout(level: int = logging.INFO) -> None:
    """Sends the log of the whole process, that of uvicorn included, to stdout as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)  # what Pillow has to say about damaged pictures


class RequestLog:
    """ASGI middleware: gives every request an id, and logs and counts it when it is answered.

    `scope["state"]["log"]` is a dict to which the application adds fields of the request's line. The answer bears the
    id and the headers that are the same for all answers.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, headers: dict[str, str]) -> None:
        self._app, self._metrics, self._headers = app, metrics, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        wished_id = Headers(scope=scope).get("x-request-id", "")
        request_id = wished_id if _REQUEST_ID.fullmatch(wished_id) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, begun=begun, log={})
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            seconds = time.monotonic() - begun
            path = getattr(scope.get("route"), "path", "other")  # what clients make up gets no series of its own
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(seconds)
            _LOG.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(seconds, 4),
                    "client": scope["client"][0] if scope.get("client") else None,
                    **scope["state"]["log"],
                },
            )
