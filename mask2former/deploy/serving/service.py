"""The way of a picture through the service: upload, decoding, batch, encoding."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from fastapi import Request, Response
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from mask2former.deploy.decoding import PictureError, PictureTooLargeError, decode_picture
from mask2former.deploy.results import Segmentation, Task
from mask2former.deploy.runtime import Segmenter

from .batching import Batcher, ClosedError, Job
from .metrics import Metrics
from .outputs import MEDIA_TYPES, encode
from .problems import ServiceError
from .settings import ServiceSettings
from .uploads import Upload, UploadReader

__all__ = ["Service"]

_Result = TypeVar("_Result")
#: Decoding and encoding are done by Pillow and NumPy, which mostly let other threads run meanwhile.
_NUM_PICTURE_THREADS = 2
_FIRST_SIDE = 64


class Service:
    """Answers requests with a segmenter. Some of its threads run the model, others decode and encode.

    Args:
        segmenter: what `mask2former.deploy.load` gave.
        settings: the limits.
        metrics: where everything is counted.
    """

    def __init__(self, segmenter: Segmenter, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._num_pending = 0
        self._seconds_per_picture = 0.0
        self._is_closing = False
        self._pictures = ThreadPoolExecutor(_NUM_PICTURE_THREADS, thread_name_prefix="pictures")
        self.uploads = UploadReader(segmenter.tasks, settings.max_upload_bytes, self._pictures)
        threads_of_worker = max(1, torch.get_num_threads() // settings.num_workers)
        self._batcher = Batcher(
            segmenter,
            max_batch_size=settings.max_batch_size,
            max_wait_seconds=settings.max_wait_seconds,
            num_workers=settings.num_workers,
            on_batch=self._observe_batch,
            # How many threads torch computes with belongs to the thread that says so.
            on_start=partial(torch.set_num_threads, threads_of_worker),
        )
        # The first picture takes longer than all others, and shows whether the model works.
        black = np.zeros((_FIRST_SIDE, _FIRST_SIDE, 3), dtype=np.uint8)
        self._first = self._batcher.submit(black, segmenter.tasks[0]).result

    def start(self) -> None:
        """Begins to work; `close` must follow."""
        self._batcher.start()

    async def close(self) -> None:
        """Finishes what was accepted."""
        self._is_closing = True
        await asyncio.to_thread(self._batcher.close)
        self._pictures.shutdown()

    def check_health(self) -> None:
        """Raises ServiceError when only a restart helps."""
        if not self._batcher.is_alive:
            raise self._unavailable("the inference thread has ended; restart the service")

    def check_readiness(self) -> None:
        """Raises ServiceError when no requests should be sent now."""
        self.check_health()
        if self._is_closing:
            raise self._unavailable("the service is shutting down")
        if not self._first.done():
            raise self._unavailable("the model is warming up")
        if self._first.exception() is not None:
            raise self._unavailable("the model fails; the service's log says why")

    async def segment(self, request: Request) -> Response:
        """Answers one request for a segmentation.

        Raises:
            ServiceError: the request is refused.
            ClientDisconnect: nobody waits for the answer any more.
        """
        deadline = request.state.begun + self._settings.timeout_seconds
        log = request.state.log
        with self._place():
            upload = await self._read(request, deadline)
            task, output = upload.options.task, upload.options.output
            log.update(task=task, output=output, picture_bytes=len(upload.picture))
            picture = await self._in_picture_thread(self._decode, upload.picture)
            log.update(height=picture.shape[0], width=picture.shape[1])
            job = self._submit(picture, task)
            segmentation = await self._result(job, request, deadline)
            if job.begun is not None:
                self._metrics.waiting_seconds.observe(job.begun - job.submitted)
                log.update(waited=round(job.begun - job.submitted, 4), batch_size=job.batch_size)
            body = await self._in_picture_thread(encode, segmentation, picture, upload.options)
        self._metrics.pictures.labels(task, output).inc()
        return Response(body, media_type=MEDIA_TYPES[output])

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Holds one of the places for pending requests."""
        if self._num_pending >= self._settings.max_pending:
            raise ServiceError(
                429,
                f"{self._num_pending} requests are under way, more are not taken; come back later",
                {"Retry-After": self._retry_after()},
            )
        self._num_pending += 1
        self._metrics.pending.inc()
        try:
            yield
        finally:
            self._num_pending -= 1
            self._metrics.pending.dec()

    async def _read(self, request: Request, deadline: float) -> Upload:
        try:
            return await asyncio.wait_for(self.uploads.read(request), deadline - time.monotonic())
        except asyncio.TimeoutError as error:
            raise ServiceError(
                408,
                f"the body did not arrive within {self._settings.timeout_seconds:g} seconds",
                {"Connection": "close"},
            ) from error

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        try:
            return decode_picture(data, max_pixels=self._settings.max_pixels)
        except PictureTooLargeError as error:
            raise ServiceError(413, str(error)) from error
        except PictureError as error:
            raise ServiceError(422, str(error)) from error

    def _submit(self, picture: NDArray[np.uint8], task: Task) -> Job:
        try:
            return self._batcher.submit(picture, task)
        except ClosedError as error:
            raise self._unavailable(str(error)) from error

    async def _result(self, job: Job, request: Request, deadline: float) -> Segmentation:
        """The model's answer, unless the time is over or the client hangs up before."""
        result = asyncio.wrap_future(job.result)
        hang_up = asyncio.ensure_future(_hang_up(request))
        either: list[asyncio.Future[Any]] = [result, hang_up]
        try:
            await asyncio.wait(either, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_hung_up = hang_up.done()
            hang_up.cancel()
        if result.done():
            if result.exception() is not None:
                raise ServiceError(500, "the model failed on this picture; the service's log says why")
            return result.result()
        was_waiting = job.result.cancel()
        result.cancel()
        if has_hung_up:
            raise ClientDisconnect
        seconds = f"{self._settings.timeout_seconds:g} seconds"
        if was_waiting:
            raise self._unavailable(f"the picture's turn did not come within {seconds}; come back later")
        raise ServiceError(504, f"the model did not finish within {seconds}")

    async def _in_picture_thread(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._pictures, function, *arguments)

    def _observe_batch(self, size: int, seconds: float) -> None:
        self._metrics.observe_batch(size, seconds)
        before = self._seconds_per_picture or seconds / size
        self._seconds_per_picture = 0.9 * before + 0.1 * seconds / size

    def _unavailable(self, detail: str) -> ServiceError:
        return ServiceError(503, detail, {"Retry-After": self._retry_after()})

    def _retry_after(self) -> str:
        """Seconds until the pending pictures will be done."""
        seconds = self._num_pending * self._seconds_per_picture / self._settings.num_workers
        return str(max(1, math.ceil(seconds)))


async def _hang_up(request: Request) -> None:
    """Returns when the client has closed the connection. The body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
