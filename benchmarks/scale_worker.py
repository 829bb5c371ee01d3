"""The plain loop on one GPU: a process with a Processor, its own copy of the images, and nothing else.

    python -m benchmarks.scale_worker ARTIFACT IMAGES

Enters: the folder of an artifact, images as .npy, and one JSON command a line. Leaves: one JSON line for each: how many
images were answered in how many seconds, and how many of the answers were wrong. Apart because each GPU has a process
of its own, and none of them needs torch.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from torch2engine.serving.array_runner import find_artifact, open_runner

__all__ = ["BATCH", "DEPTH", "TIMED_ROWS", "count_wrong"]

BATCH = 32
DEPTH = 4
LEAD = 2 * DEPTH  # calls before the clock starts
TIMED_ROWS = (1, 2, 4, 8, 16, BATCH)
TIMED_CALLS = 100  # with each number of rows
BOUND = 0.008  # relative L2 distance of a row from its reference

Array = np.ndarray[Any, Any]


def count_wrong(answers: Array, reference: Array) -> int:
    """Rows that are not their reference's, by their relative L2 distance; NaN is wrong."""
    distance = np.linalg.norm(answers - reference, axis=1)
    return int((~(distance <= BOUND * np.linalg.norm(reference, axis=1))).sum())


class Loop:
    """numpy arrays through a runner, again and again.

    Args:
        artifact: a folder.
        images: a .npy file, read into memory.
    """

    def __init__(self, artifact: str, images: str) -> None:
        self._runner = open_runner(find_artifact(artifact))
        self._images: Array = np.load(images)
        self._reference: Array | None = None

    def _pieces(self, rank: int, ranks: int) -> Iterator[slice]:
        """The batches of one of several processes, for ever."""
        starts = range(rank * BATCH, len(self._images), ranks * BATCH)
        while True:
            for start in starts:
                yield slice(start, start + BATCH)

    def write_reference(self, path: str) -> dict[str, float]:
        """Answer every image once and keep the answers in a file, by id."""
        whole = [slice(start, start + BATCH) for start in range(0, len(self._images), BATCH)]
        answers = self._runner.infer_stream((self._images[piece] for piece in whole), DEPTH)
        np.save(path, np.concatenate([next(iter(one.values())) for one in answers]))
        return {"images": len(self._images)}

    def read_reference(self, path: str) -> dict[str, float]:
        """Compare with these answers from now on."""
        self._reference = np.load(path)
        return {"images": len(self._reference)}

    def time_batches(self) -> dict[str, float]:
        """Rows of a lone call -> its median time in milliseconds, from numpy to numpy, as a server answers a batch."""
        found: dict[str, float] = {}
        for rows in TIMED_ROWS:
            times: list[float] = []
            for number in range(LEAD + TIMED_CALLS):
                first = number * rows % (len(self._images) - rows + 1)
                began = time.perf_counter()
                for _ in self._runner.infer_stream([self._images[first : first + rows]], DEPTH):
                    times.append(time.perf_counter() - began)
            found[str(rows)] = statistics.median(times[LEAD:]) * 1e3
        return found

    def run(self, seconds: float, rank: int, ranks: int) -> dict[str, float]:
        """Answer for some time, and compare every answer with the reference.

        Args:
            seconds: how long, after the first calls.
            rank, ranks: which of the images: those of one process of several.
        """
        assert self._reference is not None, "read_reference comes first"
        pieces = self._pieces(rank, ranks)
        given: list[slice] = []

        def source() -> Iterator[Array]:
            for piece in pieces:
                given.append(piece)
                yield self._images[piece]

        images = wrong = checked = 0
        began = time.perf_counter()
        answers = self._runner.infer_stream(source(), DEPTH)
        for number, results in enumerate(answers):
            (found,) = results.values()
            wrong += count_wrong(found, self._reference[given.pop(0)])
            checked += len(found)
            if number < LEAD:
                began = time.perf_counter()
                continue
            images += len(found)
            took = time.perf_counter() - began
            if took >= seconds:
                break
        answers.close()
        return {"images": images, "seconds": took, "wrong": wrong, "checked": checked}


def main(artifact: str, images: str) -> None:
    loop = Loop(artifact, images)
    commands = {
        "write_reference": loop.write_reference,
        "read_reference": loop.read_reference,
        "time_batches": loop.time_batches,
        "run": loop.run,
    }
    print(json.dumps({"images": len(loop._images)}), flush=True)
    for line in sys.stdin:
        words = json.loads(line)
        print(json.dumps(commands[words.pop("command")](**words)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
