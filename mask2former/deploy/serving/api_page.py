"""The API description for people, at `/docs`: the OpenAPI document as HTML, without scripts and external assets."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

__all__ = ["api_html"]

_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; font: 16px/1.5 system-ui, sans-serif; }
h2 { margin-top: 2.5rem; border-top: 1px solid #8886; padding-top: 1.5rem; font-family: ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.2rem; }
th, td { padding: 0.35rem 0.7rem 0.35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #8884; }
td:first-child { white-space: nowrap; }
code, td:first-child { font-family: ui-monospace, monospace; font-size: 0.92em; }
.scroll { overflow-x: auto; }
"""


def api_html(description: dict[str, Any]) -> str:
    """A page with every operation, its fields and answers, and every schema of an OpenAPI document."""
    title = escape(f"{description['info']['title']} {description['info']['version']}")
    parts = [f"<h1>{title}</h1><p>{escape(description['info']['summary'])}</p>"]
    parts.append('<p><a href="/">The page</a>, <a href="/openapi.json">this description as JSON (OpenAPI)</a></p>')
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2>")
            parts.append(_operation(operation))
    for name, schema in description["components"]["schemas"].items():
        parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>')
        parts.append(_fields(schema))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{title}</title><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>"
    )


def _operation(operation: dict[str, Any]) -> str:
    parts = [f"<p>{escape(operation.get('description', ''))}</p>"]
    if "security" in operation:
        parts.append("<p>Needs the header <code>Authorization: Bearer TOKEN</code>.</p>")
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Request as <code>{escape(media_type)}</code></h3>{_fields(content['schema'])}")
    rows = [
        (status, escape(answer["description"]), ", ".join(map(_content, answer.get("content", {}).items())))
        for status, answer in operation["responses"].items()
    ]
    return "".join(parts) + "<h3>Answers</h3>" + _table(("status", "meaning", "content"), rows)


def _content(item: tuple[str, dict[str, Any]]) -> str:
    media_type, content = item
    return f"<code>{escape(media_type)}</code> {_type(content.get('schema', {}), is_named=True)}"


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            escape(name),
            _type(field) + ("" if name in required else _default(field)),
            escape(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return _table(("field", "type", "meaning"), rows)


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    return ", optional" if value is None else f", default <code>{escape(str(value))}</code>"


def _type(schema: dict[str, Any], *, is_named: bool = False) -> str:
    """A type in words; with `is_named` only a link to a schema that has a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if is_named:
        return ""
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return f"array of {', '.join(dict.fromkeys(map(_type, items)))}"
    return escape(schema.get("format") or schema.get("type", "anything"))


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    """`rows` are HTML."""
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f'<div class="scroll"><table><tr>{titles}</tr>{cells}</table></div>'
