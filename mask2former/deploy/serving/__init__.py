"""A trained model as an HTTP service, with a page to try it on; `tools/serve.py` starts it."""

from __future__ import annotations

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import rasterio  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(f"the service needs {error.name}: pip install 'mask2former[deploy]'") from error

from .app import create_app
from .logs import log_to_stdout
from .server import listen, serve
from .settings import TOKEN_VARIABLE, ServiceSettings, token_from_environment

__all__ = [
    "TOKEN_VARIABLE",
    "ServiceSettings",
    "create_app",
    "listen",
    "log_to_stdout",
    "serve",
    "token_from_environment",
]
