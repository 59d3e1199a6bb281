"""Measures one side, in this process or in one of its own."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray

from mask2former.benchmark.inference import OurInference, TransformersInference
from mask2former.benchmark.memory import MemoryMeter
from mask2former.benchmark.sides import Side
from mask2former.benchmark.training import OurTraining, TransformersTraining
from mask2former.benchmark.workload import Workload

__all__ = ["Meter", "Metering", "OwnProcess"]


class Metering(Protocol):
    """Asks a `Meter`, wherever it is: the name of a method and its arguments."""

    def __call__(self, method: str, *arguments: Any) -> Any: ...


class Meter:
    """Builds one side and measures it.

    Args:
        facts_file: None builds this project's side; else where `save_facts` of that side has written, for transformers.
    """

    def __init__(self, cfg: CfgNode, workload: Workload, facts_file: Path | None = None) -> None:
        torch.manual_seed(0)
        self._side: Side
        if facts_file is None:
            self._side = OurTraining(cfg, workload) if workload.training else OurInference(cfg, workload)
        else:
            theirs = TransformersTraining if workload.training else TransformersInference
            self._side = theirs(cfg, workload, torch.load(facts_file, weights_only=True))
        self._memory = MemoryMeter(self._side.device)

    def __call__(self, method: str, *arguments: Any) -> Any:
        return getattr(self, method)(*arguments)

    def save_facts(self, file: Path) -> None:
        torch.save(self._side.facts(), file)

    def outputs(self) -> dict[str, NDArray[np.float32]]:
        return {name: tensor.float().cpu().numpy() for name, tensor in self._side.outputs().items()}

    def warm_up(self) -> None:
        self._side.warm_up()

    def seconds(self) -> dict[str, float]:
        """One call: the seconds of its stages, and "total"."""
        total = None
        if self._side.device.type == "cuda":
            with self._side.stopwatch.as_a_whole():
                total = sum(self._timed().values())
        stages = self._timed()
        return {**stages, "total": sum(stages.values()) if total is None else total}

    def memory_mib(self) -> float | None:
        """What one call needs beyond the model itself, kernel by kernel; None where it cannot be measured."""
        self._memory.restart()
        self._side.run()
        return self._memory.peak_mib()

    def costs(self) -> tuple[int, int]:
        """Parameters of the model, and multiply-adds of its network for all pictures, forward."""
        return sum(parameter.numel() for parameter in self._side.model.parameters()), self._side.flops()

    def device_name(self) -> str:
        device = self._side.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

    def _timed(self) -> dict[str, float]:
        self._side.stopwatch.seconds = {}
        self._side.run()
        return self._side.stopwatch.seconds


class OwnProcess:
    """A `Meter` in a process of its own, whose memory no other side has touched.

    Raises:
        ValueError, ModuleNotFoundError, ...: what the meter raised.
        ChildProcessError: the process was killed.
    """

    def __init__(self, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other_end, torch.get_num_threads(), arguments), daemon=True
        )
        self._process.start()
        other_end.close()
        self._answer()

    def __call__(self, method: str, *arguments: Any) -> Any:
        self._connection.send((method, arguments))
        return self._answer()

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError as error:
            self._process.join()
            raise ChildProcessError(
                f"the process of a side ended with exit code {self._process.exitcode}; -9 and -15 mean that it was "
                "killed, perhaps because memory ran out"
            ) from error
        if isinstance(answer, Exception):
            self._connection.close()
            raise answer
        return answer


def _serve(connection: Connection, num_threads: int, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, whose end ends this one
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(num_threads)
    meter: Meter | None = None
    try:
        meter = Meter(*arguments)
        connection.send(None)
        while True:
            method, method_arguments = connection.recv()
            connection.send(meter(method, *method_arguments))
    except EOFError:
        return  # nobody asks any more
    except Exception as error:  # noqa: BLE001  # whatever it is, it is raised again on the other side
        connection.send(error)
