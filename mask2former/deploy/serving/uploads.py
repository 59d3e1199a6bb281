"""From the body of a request to a picture's bytes and the client's options. Everything stays in memory.

File names that clients send are never looked at, and no temporary file is made.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from typing import Annotated, Any, NamedTuple

from fastapi import Request
from pydantic import BeforeValidator, Field, Strict, ValidationError, create_model
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .models import SegmentOptions, options_for
from .problems import ServiceError

__all__ = ["Upload", "UploadReader"]

#: What a body may hold beside the picture: boundaries, names, options.
_OVERHEAD_BYTES = 2**16
_MAX_FIELD_BYTES = 1024


class Upload(NamedTuple):
    picture: bytes
    options: SegmentOptions


class UploadReader:
    """Reads requests for one model.

    Args:
        tasks: what `task` may be; the first is the default.
        max_upload_bytes: size of a picture.
        executor: megabytes of base64 take their time, during which others shall be answered; they are decoded there.
    """

    def __init__(self, tasks: Sequence[str], max_upload_bytes: int, executor: Executor) -> None:
        self._options = options_for(tasks)
        # A form has only strings, but JSON has numbers, and neither "0.5" nor false is one.
        threshold: Any = (Annotated[float, Strict()] | None, SegmentOptions.model_fields["threshold"])
        self._json_body = create_model(
            "SegmentRequest", __base__=self._options, picture=(_Base64, ...), threshold=threshold
        )
        self._executor = executor
        self._max_upload_bytes = max_upload_bytes
        self._max_body_bytes = 4 * max_upload_bytes // 3 + _OVERHEAD_BYTES  # base64 makes four bytes of three

    def request_body(self) -> dict[str, Any]:
        """The OpenAPI description of what `read` understands."""
        json_schema = self._json_body.model_json_schema()
        form_schema = self._options.model_json_schema()
        # A form has no null: the field is left out instead.
        form_schema["properties"]["threshold"] |= {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}]}
        form_schema["properties"]["threshold"].pop("default")
        form_schema["properties"]["picture"] = {"type": "string", "format": "binary", "description": "The file."}
        form_schema["required"] = ["picture"]
        content = {"multipart/form-data": {"schema": form_schema}, "application/json": {"schema": json_schema}}
        return {"required": True, "content": content}

    async def read(self, request: Request) -> Upload:
        """The upload of a request.

        Raises:
            ServiceError: 400, 413, 415 or 422.
            ClientDisconnect: the client hung up.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        stream = self._limited(request)
        if content_type == "multipart/form-data":
            picture, fields = await _read_form(request, stream)
            options = _validated(self._options.model_validate, fields)
        elif content_type == "application/json":
            body = b"".join([chunk async for chunk in stream])
            loop, validate = asyncio.get_running_loop(), self._json_body.model_validate_json
            content = await loop.run_in_executor(self._executor, _validated, validate, body)
            picture, options = content.picture, content
        else:
            raise ServiceError(
                415,
                f"the body is {content_type or 'of no stated type'}; send the picture as a file of a "
                "multipart/form-data form, or base64 in application/json",
            )
        if len(picture) > self._max_upload_bytes:
            raise self._too_large()
        return Upload(picture, options)

    async def _limited(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body in pieces, as long as it is not too large."""
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._max_body_bytes:
            raise self._too_large()
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > self._max_body_bytes:
                raise self._too_large()
            yield chunk

    def _too_large(self) -> ServiceError:
        detail = f"the picture is larger than the {self._max_upload_bytes:,} bytes that are accepted"
        return ServiceError(413, detail, {"Connection": "close"})  # instead of reading on


class _InMemoryForm(MultiPartParser):
    spool_max_size = 0  # a SpooledTemporaryFile of this size never becomes a file


async def _read_form(request: Request, stream: AsyncGenerator[bytes, None]) -> tuple[bytes, dict[str, str]]:
    try:
        parser = _InMemoryForm(request.headers, stream, max_files=1, max_fields=8, max_part_size=_MAX_FIELD_BYTES)
        form = await parser.parse()
    except MultiPartException as error:
        raise ServiceError(400, f"the form cannot be read: {error.message}") from error
    picture = b""
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise ServiceError(422, f"the field {name!r} is there twice")
        if isinstance(value, UploadFile) != (name == "picture"):
            kind = "must be a file" if name == "picture" else "must not be a file; that of the picture is 'picture'"
            raise ServiceError(422, f"the field {name!r} {kind}")
        if isinstance(value, UploadFile):
            picture = await value.read()
        else:
            fields[name] = value
    if not picture:
        raise ServiceError(422, "the field 'picture' is missing or empty")
    return picture, fields


def _validated(validate: Any, content: Any) -> Any:
    try:
        return validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if problems[0]["type"] == "json_invalid":
            raise ServiceError(400, f"the body is no JSON: {problems[0]['msg']}") from error
        sentences = [": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in problems[:5]]
        raise ServiceError(422, "; ".join(sentences)) from error


def _decode_base64(text: Any) -> bytes:
    if not isinstance(text, str) or not text:
        raise ValueError("must be a picture's bytes as base64 text")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"is no base64: {error}") from error


_Base64 = Annotated[
    bytes,
    BeforeValidator(_decode_base64, json_schema_input_type=str),
    Field(
        description="The bytes of the file as base64, without a data: prefix.",
        json_schema_extra={"type": "string", "format": "byte", "contentEncoding": "base64", "minLength": 1},
    ),
]
