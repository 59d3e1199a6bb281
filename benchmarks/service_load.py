#!/usr/bin/env python3
"""What the service loses to HTTP: pictures per second of tools/serve.py under load beside those of the model alone.

    benchmarks/service_load.py weights/digits_panoptic.safetensors --requests 10000 --workers 2

Starts the service and, in this process, loads the same model. Both take turns: a round of the model alone, in batches
of --batch pictures, then a round of the service, to which --clients connections send one picture after the other, each
as soon as the answer to the last one is there. Pictures are generated 96 x 96 scenes, sent as JPEG files. Figures are
medians over the rounds with their range. Requests are counted as errors unless the answer is 200. Memory is the
service's resident set after each round; processor time counts all threads and is disturbed less by other programs than
the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mask2former.benchmark import Statistic
from mask2former.data.datasets.digits import draw_scene, load_material, sample_scene, scene_random
from mask2former.deploy import Segmenter, load

ROOT = Path(__file__).resolve().parents[1]
NUM_PICTURES = 64
WARM_UP_REQUESTS = 500  # after which the service's memory is looked at for the first time
BOUNDARY = "picture-boundary"
Picture = NDArray[np.uint8]


@dataclass
class Round:
    """One round of the service: its figures over the round only."""

    images_per_second: float
    latencies: list[float]  # seconds
    num_errors: int
    processor_ms: float  # of one picture
    batch_seconds: float  # mean
    batch_size: float  # mean
    resident_mib: float


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    pictures = make_pictures()
    segmenter = load(args.model, config_file=args.config_file)
    service, url = start_service(args)
    try:
        send_round(url, pictures, args, WARM_UP_REQUESTS)
        before = read_metrics(url)["process_resident_memory_bytes"] / 2**20
        alone: list[tuple[float, float]] = []
        rounds: list[Round] = []
        for _ in range(args.rounds):
            alone.append(run_alone(segmenter, pictures, args))
            rounds.append(send_round(url, pictures, args, args.requests // args.rounds))
            print(
                f"round {len(rounds)}: {alone[-1][0]:.1f} and {rounds[-1].images_per_second:.1f} images/s", flush=True
            )
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)
    report(args, alone, rounds, before)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for tools/serve.py")
    parser.add_argument("--config-file", metavar="FILE", help="as for tools/serve.py")
    parser.add_argument("--task", default="panoptic", help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="in all rounds; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of the service; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of torch; default: %(default)s")
    return parser.parse_args(arguments)


def make_pictures() -> list[Picture]:
    material = load_material("val")
    randoms = (scene_random(0, "val", index) for index in range(NUM_PICTURES))
    return [draw_scene(sample_scene(material, size=96, random=random), material).image for random in randoms]


def run_alone(segmenter: Segmenter, pictures: list[Picture], args: argparse.Namespace) -> tuple[float, float]:
    """Images per second and milliseconds of processor time per image of the model alone."""
    num_pictures = max(args.batch, args.requests // args.rounds // 4)
    batches = [
        [pictures[(first + index) % NUM_PICTURES] for index in range(args.batch)]
        for first in range(0, num_pictures, args.batch)
    ]
    segmenter(batches[0], task=args.task)
    begun, processor_begun = time.perf_counter(), time.process_time()
    for batch in batches:
        segmenter(batch, task=args.task)
    count = len(batches) * args.batch
    return count / (time.perf_counter() - begun), 1000 * (time.process_time() - processor_begun) / count


def start_service(args: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """The process, and the address that it chose."""
    command = [sys.executable, str(ROOT / "tools/serve.py"), args.model, "--port", "0"]
    command += ["--max-batch-size", str(args.batch), "--max-pending", str(2 * args.clients)]
    command += ["--workers", str(args.workers)]
    command += ["--config-file", args.config_file] if args.config_file else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(ROOT)}
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert service.stdout is not None, "stdout was asked for"
    for line in service.stdout:
        event = json.loads(line)
        if event["message"] == "listening":
            # Nobody reads the rest, but a full pipe would stop the service.
            threading.Thread(target=lambda stream: [None for _ in stream], args=(service.stdout,), daemon=True).start()
            return service, event["url"]
    raise RuntimeError(f"the service ended with status {service.wait()}")


def send_round(url: str, pictures: list[Picture], args: argparse.Namespace, num_requests: int) -> Round:
    before = read_metrics(url)
    begun = time.perf_counter()
    latencies, num_errors = asyncio.run(send_requests(url, pictures, args, num_requests))
    seconds = time.perf_counter() - begun
    after = read_metrics(url)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    return Round(
        images_per_second=num_requests / seconds,
        latencies=latencies,
        num_errors=num_errors,
        processor_ms=1000 * grown["process_cpu_seconds_total"] / num_requests,
        batch_seconds=grown["mask2former_batch_seconds_sum"] / grown["mask2former_batch_seconds_count"],
        batch_size=grown["mask2former_batch_size_sum"] / grown["mask2former_batch_size_count"],
        resident_mib=after["process_resident_memory_bytes"] / 2**20,
    )


async def send_requests(
    url: str, pictures: list[Picture], args: argparse.Namespace, num_requests: int
) -> tuple[list[float], int]:
    address = urlsplit(url)
    requests = [make_request(picture, args.task, address.netloc) for picture in pictures]
    left = iter(range(num_requests))
    latencies: list[float] = []
    num_errors = 0

    async def client() -> None:
        nonlocal num_errors
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for index in left:
            begun = time.perf_counter()
            writer.write(requests[index % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length.group(1)) if length else 0)
            latencies.append(time.perf_counter() - begun)
            num_errors += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    await asyncio.gather(*(client() for _ in range(args.clients)))
    return latencies, num_errors


def make_request(picture: Picture, task: str, host: str) -> bytes:
    """A whole HTTP request: nothing is left to do while the service is timed."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    part = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    body = f'{part}"task"\r\n\r\n{task}\r\n{part}"picture"; filename="a.jpg"\r\n\r\n'.encode()
    body += file.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = f"POST /v1/segment HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_metrics(url: str) -> dict[str, float]:
    """The figures without labels."""
    with urlopen(url + "metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.split(" ") for line in lines if re.match(r"\w+ ", line))}


def report(args: argparse.Namespace, alone: list[tuple[float, float]], rounds: list[Round], before: float) -> None:
    latencies = 1000 * np.array([latency for one in rounds for latency in one.latencies])
    p50, p99 = np.percentile(latencies, [50, 99])
    own, service = Statistic.of([rate for rate, _ in alone]), Statistic.of([one.images_per_second for one in rounds])
    ratios = Statistic.of([one.images_per_second / rate for one, (rate, _) in zip(rounds, alone, strict=True)])
    own_ms, service_ms = Statistic.of([cost for _, cost in alone]), Statistic.of([one.processor_ms for one in rounds])
    batch_ms = 1000 * Statistic.of([one.batch_seconds for one in rounds]).median
    queue_ms = 1000 * args.clients / service.median
    size = Statistic.of([one.batch_size for one in rounds]).median
    print(f"{args.clients} clients, {len(latencies)} requests, {sum(one.num_errors for one in rounds)} errors")
    print(f"images/s: model alone {shown(own)}, service {shown(service)}, ratio {shown(ratios, 2)}")
    print(f"processor ms per image: model alone {shown(own_ms)}, service {shown(service_ms)}")
    print(f"latency ms: p50 {p50:.0f}, p99 {p99:.0f}, largest {latencies.max():.0f}")
    print(f"a batch of {size:.1f}: {batch_ms:.0f} ms; 3 batches and the queue: {3 * batch_ms + queue_ms:.0f} ms")
    print(
        f"resident MiB: {before:.0f} before, {' '.join(f'{one.resident_mib:.0f}' for one in rounds)} after the rounds"
    )


def shown(figure: Statistic, digits: int = 1) -> str:
    return f"{figure.median:.{digits}f} ({figure.smallest:.{digits}f} - {figure.largest:.{digits}f})"


if __name__ == "__main__":
    main()
