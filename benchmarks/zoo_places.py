"""Where a process of a sweep runs: its CPU cores, and its GPU.

Enters: the number of processes, and the GPUs that this process may use. Leaves: a `Place` for each of them, in turn
over the GPUs. Separate because only a sweep over many models spreads over several GPUs.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks._worker import Cores

__all__ = ["Place", "Places", "show_only"]


@dataclass(frozen=True)
class Place:
    """Where one process runs.

    Args:
        cores: numbers of the CPU cores to use, with commas; "" for all.
        gpu: the GPU to use, as CUDA_VISIBLE_DEVICES names it; "" for what the process sees.
    """

    cores: str = ""
    gpu: str = ""


class Places:
    """Shares the machine out among processes.

    Args:
        count: of processes at a time; fewer where there are not as many cores.
        gpus: from `visible_devices`; empty where none is needed.
    """

    def __init__(self, count: int, gpus: Sequence[str] = ()) -> None:
        self._cores = Cores(count)
        self.count = self._cores.count
        self._free: queue.Queue[str] = queue.Queue()
        for number in range(self.count):
            self._free.put(gpus[number % len(gpus)] if gpus else "")

    @contextmanager
    def share(self) -> Generator[Place]:
        """One place, for one process meanwhile."""
        with self._cores.share() as cores:
            gpu = self._free.get()
            try:
                yield Place(cores, gpu)
            finally:
                self._free.put(gpu)


def show_only(gpu: str) -> None:
    """Let this process, which has not used CUDA yet, see one GPU alone.

    Args:
        gpu: as CUDA_VISIBLE_DEVICES names it; "" changes nothing.
    """
    if gpu:
        assert not torch.cuda.is_initialized()
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
