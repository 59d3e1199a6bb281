"""Runs the application until the process is asked to end."""

from __future__ import annotations

import logging
import socket

import uvicorn
from fastapi import FastAPI

__all__ = ["listen", "make_server", "serve"]

_LOG = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 30
_BACKLOG = 2048  # connections that the system accepts for us while we are busy


def listen(host: str, port: int) -> socket.socket:
    """A socket for `serve`; port 0 lets the system choose, the log of `serve` says which.

    Raises:
        OSError: nothing can be listened to there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen at {host} port {port}: {error}") from error


def serve(app: FastAPI, listener: socket.socket, *, shutdown_seconds: float) -> None:
    """Answers requests until SIGTERM or Ctrl-C; those that were accepted before are finished.

    Args:
        listener: see `listen`.
        shutdown_seconds: after which requests that are still under way are cut off.
    """
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    _LOG.info("listening", extra={"url": f"http://{shown}:{port}/"})
    make_server(app, shutdown_seconds).run(sockets=[listener])


def make_server(app: FastAPI, shutdown_seconds: float) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        log_config=None,  # uvicorn's loggers pass on to ours
        access_log=False,  # the application logs requests itself
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(shutdown_seconds),
    )
    return uvicorn.Server(config)
