"""Processes of a benchmark that has several at a time: what they answer, and which cores each may use.

Enters: a module of this package with its words. Leaves: the JSON on the last line that it prints. Apart because workers
that share all cores slow each other down.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.evidence import REPOSITORY

__all__ = ["Cores", "answer", "keep_to", "parser", "visible_devices"]

TIMEOUT_S = 400


def answer(module: str, words: Sequence[str], cores: str = "", timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Run a worker.

    Args:
        module: e.g. "benchmarks.precision_worker".
        words: its command line.
        cores: numbers of the CPU cores that it keeps to, with commas; "" for all.
        timeout_s: seconds that it may take.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
        subprocess.TimeoutExpired: it took too long, and was ended.
    """
    command = [sys.executable, "-m", module, f"--cores={cores}", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Cores:
    """Shares the machine's cores out, as evenly as they go.

    Args:
        count: of shares; fewer where there are not as many cores.
    """

    def __init__(self, count: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.count = min(max(count, 1), len(cores))
        shares = sorted((cores[first :: self.count] for first in range(self.count)), key=len, reverse=True)
        self._free: queue.Queue[str] = queue.Queue()
        for share in shares:
            self._free.put(",".join(map(str, share)))

    @contextmanager
    def share(self) -> Generator[str]:
        """One share, for nobody else meanwhile."""
        cores = self._free.get()
        try:
            yield cores
        finally:
            self._free.put(cores)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A worker's parser, with `--cores`."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--cores", default="", help="CPU cores to keep to")
    return made


def keep_to(cores: str) -> None:
    """Use these cores alone, and let PyTorch compute float32 convolutions in float32."""
    torch.backends.cudnn.allow_tf32 = False
    if cores:
        numbers = [int(core) for core in cores.split(",")]
        os.sched_setaffinity(0, numbers)
        torch.set_num_threads(len(numbers))


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them.

    Args:
        environment: of the process. What it lists is kept; without a list, GPUs have their numbers.
    """
    shown = environment.get("CUDA_VISIBLE_DEVICES", "")
    named = [name.strip() for name in shown.split(",") if name.strip()]
    return named or [str(index) for index in range(torch.cuda.device_count())]
