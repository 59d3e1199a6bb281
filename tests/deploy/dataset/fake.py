"""A segmenter that needs no network, for tests of everything around it; as a program, a run with it.

The color of a picture says what happens: red waits, green kills the process, gray cannot be segmented,
yellow shows that the model is broken.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mask2former.deploy.dataset.inputs import find_inputs
from mask2former.deploy.dataset.run import DatasetRun

RED, GREEN, GRAY, YELLOW = (255, 0, 0), (0, 255, 0), (128, 128, 128), (255, 255, 0)
SECONDS = 0.01  # that a red picture takes


@dataclass
class FakeResult:
    task: str
    picture: np.ndarray

    def to_json(self, masks: str) -> dict:
        height, width = self.picture.shape[:2]
        segment = {
            "category": int(self.picture[0, 0, 2]),
            "name": "disc",
            "dataset_id": 7,
            "is_thing": True,
            "score": 0.5,
            "box": [0.0, 0.0, float(width), float(height)],
            "area": height * width,
        }
        if masks == "rle":
            segment["mask"] = {"size": [height, width], "counts": "0"}
        return {"task": self.task, "height": height, "width": width, "segments": [segment]}


@dataclass
class FakeSegmenter:
    name: str
    tasks: tuple[str, ...] = ("panoptic", "instance")
    description: dict = field(init=False)

    def __post_init__(self):
        self.description = {"weights": self.name}

    def __call__(self, pictures, task):
        return [self._result(picture, task) for picture in pictures]

    def _result(self, picture, task):
        color = tuple(int(value) for value in picture[0, 0])
        if color[:2] == RED[:2]:
            time.sleep(SECONDS)
        elif color == GREEN:
            os._exit(9)  # as the system does to a process when memory runs out
        elif color == GRAY:
            raise ValueError("it is gray")
        elif color == YELLOW:
            raise RuntimeError("the model is broken")
        return FakeResult(task, picture)


def load(name: str, device: str | None = None) -> FakeSegmenter:
    return FakeSegmenter(name)


def dataset_run(name: str = "fake", **settings) -> DatasetRun:
    settings = {"form": "jsonl", "num_workers": (2, 2), "num_threads": 1, "batch_size": 2, "shard_size": 5, **settings}
    return DatasetRun(functools.partial(load, name), **settings)


def write_pictures(folder: Path, number: int, special: dict[int, tuple[int, int, int]] | None = None) -> None:
    """Pictures 000.png, 001.png, ..., red with the number as blue; others as `special` says."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        color = (special or {}).get(index, (255, 0, index % 256))
        Image.new("RGB", (5 + index % 3, 4), color).save(folder / f"{index:03d}.png")


if __name__ == "__main__":
    # Functions of this module are known to workers by its name, not as part of __main__.
    from tests.deploy.dataset import fake

    print(fake.dataset_run().prepare(find_inputs(sys.argv[1]), sys.argv[2])())
