"""The page at `/` and the API description at `/docs`, without external assets, which browsers may not add to."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from .api_page import api_html

__all__ = ["add_pages", "content_security_policy"]


def add_pages(app: FastAPI) -> None:
    """Serves both pages; they are no part of the API and need no token, but the first asks for one where the API does.

    Call it when the application has all its other routes.
    """
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    docs = api_html(app.openapi())

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return _answer(page)

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return _answer(docs)


def _answer(html: str) -> HTMLResponse:
    headers = {"content-security-policy": content_security_policy(html), "referrer-policy": "no-referrer"}
    return HTMLResponse(html, headers=headers)


@cache
def content_security_policy(html: str) -> str:
    """A policy that allows exactly the scripts and styles of this HTML, by their hashes, and calls of its server."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(html, 'script')}",
            f"style-src {_hashes(html, 'style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hashes(html: str, tag: str) -> str:
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in contents)
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
