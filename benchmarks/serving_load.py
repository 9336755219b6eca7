"""Load on a served model: mixed requests at once, batching against one by one, and a replica that is killed.

    python -m benchmarks.serving_load FOLDER --out load.json

Starts `ray-llava serve` twice (one row per batch, then many) on this machine and asks over loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from PIL import Image

NUM_REQUESTS = 200


def picture(rng: np.random.Generator) -> str:
    """Return a data URL of a picture of 32 to 640 pixels per side."""
    width, height = (int(side) for side in rng.integers(32, 640, 2))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def requests(seed: int) -> list[dict[str, Any]]:
    """Return requests of mixed size: none to three pictures, answers of 1 to 64 tokens, every third streamed."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(NUM_REQUESTS):
        content: list[Any] = [
            {"type": "image_url", "image_url": {"url": picture(rng)}} for _ in range(int(rng.integers(0, 4)))
        ]
        content.append({"type": "text", "text": "What is there? " * int(rng.integers(1, 9))})
        found.append(
            {
                "messages": [{"role": "user", "content": content}],
                "max_tokens": int(rng.integers(1, 65)),
                "temperature": 1.0,
                "seed": number,
                "stream": number % 3 == 0,
            }
        )
    return found


@contextmanager
def served(folder: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve a folder for the length of the block; yields address and process."""
    command = [sys.executable, "-m", "jobs", "serve", folder, "--port", "0", *options]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    yield process.stdout.readline().rpartition(": ")[2].strip(), process
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def memory(process: subprocess.Popen[str]) -> dict[str, int]:
    """Return resident MiB of the listening process and of the replicas."""
    found = {"front": psutil.Process(process.pid).memory_info().rss >> 20, "replicas": 0}
    for child in replicas(process):
        found["replicas"] += child.memory_info().rss >> 20
    return found


def replicas(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that hold the model."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "ServeReplica" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


async def ask(session: aiohttp.ClientSession, address: str, body: dict[str, Any]) -> tuple[str, float]:
    """Return what came of one request, and the seconds it took."""
    began = time.perf_counter()
    async with session.post(f"{address}/chat/completions", json=body) as response:
        text = await response.text()
        outcome = str(response.status)
        if body["stream"] and response.status == 200:
            outcome = "stream cut" if '"error"' in text else "200"
            assert text.endswith("data: [DONE]\n\n"), text[-200:]
        elif response.status == 200:
            assert json.loads(text)["choices"][0]["finish_reason"] in ("stop", "length")
    return outcome, time.perf_counter() - began


async def load(address: str, bodies: list[dict[str, Any]], at_once: int, kill: Any = None) -> dict[str, Any]:
    """Send all requests, so many at once; `kill` is called after a second."""
    limit = asyncio.Semaphore(at_once)
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def one(body: dict[str, Any]) -> tuple[str, float]:
            async with limit:
                return await ask(session, address, body)

        began = time.perf_counter()
        tasks = [asyncio.ensure_future(one(body)) for body in bodies]
        if kill is not None:
            await asyncio.sleep(1)
            kill()
        outcomes = await asyncio.gather(*tasks)
    seconds = sorted(taken for _, taken in outcomes)
    return {
        "outcomes": dict(Counter(outcome for outcome, _ in outcomes)),
        "seconds": round(time.perf_counter() - began, 2),
        "median_s": round(statistics.median(seconds), 2),
        "p95_s": round(seconds[int(0.95 * len(seconds))], 2),
        "slowest_s": round(seconds[-1], 2),
    }


class Report(dict[str, Any]):
    """Figures, printed as they come."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Note and print a figure."""
        super().__setitem__(name, value)
        print(f"{name}: {json.dumps(value)}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    bodies, report = requests(7), Report()
    random.Random(3).shuffle(bodies)
    with served(given.folder) as (address, process):
        asyncio.run(load(address, bodies[:20], 4))  # warm
        report["memory_before_mib"] = memory(process)
        report["batched, 200 at once"] = asyncio.run(load(address, bodies, NUM_REQUESTS))
        report["memory_after_mib"] = memory(process)
        report["batched, 200 at once, again"] = asyncio.run(load(address, bodies, NUM_REQUESTS))
        report["memory_after_second_mib"] = memory(process)
        report["one by one, same server"] = asyncio.run(load(address, bodies, 1))
    with served(given.folder, "--batch-rows", "1") as (address, process):
        asyncio.run(load(address, bodies[:20], 4))
        report["200 at once, one row per batch"] = asyncio.run(load(address, bodies, NUM_REQUESTS))
    with served(given.folder, "--replicas", "2") as (address, process):
        asyncio.run(load(address, bodies[:20], 4))
        report["two replicas, one killed"] = asyncio.run(
            load(address, bodies, NUM_REQUESTS, lambda: replicas(process)[0].kill())
        )
        report["after it"] = asyncio.run(load(address, bodies[:50], 50))
    if given.out:
        given.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
