"""Load on a server of arrays: a closed loop for its rate, an open one for its latency; every answer is compared.

    python -m benchmarks.serve_client URL ROWS REFERENCE SECONDS CONNECTIONS [RATE]

Enters: a URL, rows and their answers as .npy. Leaves: one line of JSON. Apart because the load must come from another
process than the server's, and none of it needs torch.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import sys
import time
from typing import Any

import aiohttp
import numpy as np

from benchmarks.scale_worker import Array, count_wrong

__all__ = ["SPREAD", "send_load"]

SPREAD = 200  # latencies that stand for all of a load, each for as large a share
LEAD_SHARE = 0.2  # of the seconds, before the clock starts: first requests open connections, and are late


class Client:
    """Sends single rows and notes how long each answer took.

    Args:
        session: of HTTP.
        url: where to.
        rows, reference: what is sent in turn, and the right answers.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, rows: Array, reference: Array) -> None:
        self._session, self._url, self._reference = session, url, reference
        self._bodies = [_npy(rows[index : index + 1]) for index in range(min(len(rows), 256))]
        self.sent = 0
        self.seconds: list[float] = []
        self.wrong = 0
        self.failed = 0

    async def ask(self) -> None:
        """One request."""
        index = self.sent % len(self._bodies)
        self.sent += 1
        began = time.perf_counter()
        async with self._session.post(self._url, data=self._bodies[index]) as response:
            body = await response.read()
        self.seconds.append(time.perf_counter() - began)
        if response.status != 200:
            self.failed += 1
            return
        self.wrong += count_wrong(np.load(io.BytesIO(body)), self._reference[index : index + 1])


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


async def _closed_loop(client: Client, seconds: float, connections: int) -> None:
    """Every connection sends its next request as soon as it has an answer."""
    end = time.perf_counter() + seconds

    async def keep_asking() -> None:
        while time.perf_counter() < end:
            await client.ask()

    await asyncio.gather(*(keep_asking() for _ in range(connections)))


async def _open_loop(client: Client, seconds: float, rate: float) -> None:
    """Requests come at random times, whether or not earlier ones are answered."""
    times = random.Random(0)
    began = due = time.perf_counter()
    tasks: list[asyncio.Task[None]] = []
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(client.ask()))
        due += times.expovariate(rate)
    await asyncio.gather(*tasks)


async def send_load(
    url: str, rows: Array, reference: Array, seconds: float, connections: int, rate: float = 0.0
) -> dict[str, Any]:
    """Send requests of one row each for some time.

    Args:
        url: of the server.
        rows, reference: what is sent in turn, and the right answers.
        seconds: how long, after a lead whose answers are compared but not timed.
        connections: at most.
        rate: requests a second, at random times; 0 for as many as the connections get answered.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        client = Client(session, url, rows, reference)
        for duration in (LEAD_SHARE * seconds, seconds):
            client.seconds.clear()
            began = time.perf_counter()
            await (_open_loop(client, duration, rate) if rate else _closed_loop(client, duration, connections))
            took = time.perf_counter() - began
    milliseconds = np.sort(client.seconds) * 1e3
    return {
        "sent": client.sent,  # with the lead
        "requests": len(milliseconds),
        "rate": len(milliseconds) / took,
        "p50_ms": float(np.quantile(milliseconds, 0.5)),
        "p99_ms": float(np.quantile(milliseconds, 0.99)),
        "spread_ms": np.quantile(milliseconds, (np.arange(SPREAD) + 0.5) / SPREAD).round(4).tolist(),
        "wrong": client.wrong,
        "failed": client.failed,
    }


def main(url: str, rows: str, reference: str, *numbers: Any) -> None:
    seconds, connections, *rate = map(float, numbers)
    whole: Array = np.load(rows, mmap_mode="r")
    print(json.dumps(asyncio.run(send_load(url, whole, np.load(reference), seconds, int(connections), *rate))))


if __name__ == "__main__":
    main(*sys.argv[1:])
