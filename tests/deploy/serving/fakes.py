"""A model that needs no network, and a service around it."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from contextlib import contextmanager

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from mask2former.data.masks import encode_rle
from mask2former.deploy.results import ClassInfo, Segment, Segmentation
from mask2former.deploy.serving import ServiceSettings, create_app
from mask2former.deploy.serving.server import make_server

CLASSES = (ClassInfo("grass", (10, 200, 30), 7, False), ClassInfo("ball", (250, 20, 20), 9, True))
POISON = 13  # pictures of this gray make the model fail


class FakeSegmenter:
    """Finds grass everywhere and a ball with a hole in the upper left corner.

    Attributes:
        gate: the model waits while this is not set.
        batches: how many pictures each call had.
    """

    classes = CLASSES
    tasks = ("panoptic", "instance", "semantic")
    description = {"format": "fake", "precision": "fp32"}

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []

    def __call__(self, images, task=None):
        self.batches.append(len(images))
        assert self.gate.wait(30), "the test has forgotten the gate"
        if any((image == POISON).all() for image in images):
            raise RuntimeError("poison")
        return [segmentation(image.shape[:2], task) for image in images]


def segmentation(size, task):
    height, width = size
    ball = np.zeros(size, dtype=bool)
    ball[: height // 2 + 1, : width // 2 + 1] = True
    if min(size) >= 8:
        ball[2, 2] = False
    if task == "instance":
        segments = (segment(ball, 1, 0.9), segment(np.ones(size, dtype=bool), 1, 0.6), segment(ball, 1, 0.2))
        return Segmentation(task, height, width, segments, None, None, CLASSES)
    labels = np.where(ball, 2, 1)
    if task == "semantic":
        segments = (segment(labels == 1, 0, 0.7), segment(ball, 1, 0.9))
        return Segmentation(task, height, width, segments, labels - 1, np.ones(size, dtype=np.float32), CLASSES)
    return Segmentation(
        task, height, width, (segment(labels == 1, 0, 0.7), segment(ball, 1, 0.9)), labels, None, CLASSES
    )


def segment(mask, category, score):
    return Segment.of(encode_rle(mask), category, CLASSES[category], score=score)


def png(height=20, width=30, value=None, file_format="PNG"):
    """An encoded picture: noise, or of one gray."""
    if value is None:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    else:
        pixels = np.full((height, width, 3), value, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


@contextmanager
def service(segmenter=None, **settings):
    """A client of a service that runs inside the test; it is ready."""
    app = create_app(segmenter or FakeSegmenter(), ServiceSettings(**settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@contextmanager
def listening_service(segmenter=None, **settings):
    """(address, server) of a service that listens at a port of the system's choice."""
    app = create_app(segmenter or FakeSegmenter(), ServiceSettings(**settings))
    server = make_server(app, shutdown_seconds=30)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield listener.getsockname(), server
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive(), "the service did not end"


def wait_until(is_true, seconds=20.0):
    """Other threads work on it; fails when they do not get there."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if is_true():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen in time")
