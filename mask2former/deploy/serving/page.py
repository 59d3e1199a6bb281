"""The page at `/`: one file without external assets, which may run and fetch nothing but what is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

__all__ = ["add_page", "content_security_policy"]


def add_page(app: FastAPI) -> None:
    """Serves the page; it is no part of the API and needs no token, but asks for one where the API does."""
    html = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    headers = {"content-security-policy": content_security_policy(html), "referrer-policy": "no-referrer"}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)


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
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in contents
    )
