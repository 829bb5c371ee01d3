"""`torch2engine.SharedMemory`: one memory for each device, found by every module that has the object."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch2engine as t2e
from torch2engine.core.shared_memory import SharedMemory


@dataclass
class Memory:
    """Memory of some size."""

    size_bytes: int


def test_each_device_has_one_memory() -> None:
    """Who asks again gets the same; the sizes of all devices add up."""
    shared = t2e.SharedMemory()
    assert t2e.SharedMemory is SharedMemory
    first = shared.on_device(0, lambda: Memory(10))
    assert shared.on_device(0, lambda: Memory(99)) is first
    second = shared.on_device(1, lambda: Memory(5))
    assert second is not first
    assert (shared.memory_bytes, repr(shared)) == (15, "SharedMemory(15 bytes)")
    second.size_bytes = 7
    assert shared.memory_bytes == 17


def test_threads_that_ask_together_get_the_same_memory() -> None:
    """However many ask at once, one memory is made."""
    shared = t2e.SharedMemory()
    made: list[Memory] = []

    def make() -> Memory:
        made.append(Memory(1))
        return made[-1]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: shared.on_device(0, make), range(64)))
    assert len(made) == 1 and all(one is made[0] for one in found)


def test_copies_share_and_pickles_share_among_themselves() -> None:
    """Copies are the object itself; what was pickled together shares a new one, without the old one's memory."""
    shared = t2e.SharedMemory()
    shared.on_device(0, lambda: Memory(10))
    configs = [t2e.RuntimeConfig(shared_memory=shared), t2e.RuntimeConfig(shared_memory=shared, streams=1)]
    assert all(copy.copy(one).shared_memory is shared for one in configs)
    assert all(one.shared_memory is shared for one in copy.deepcopy(configs))
    first, second = pickle.loads(pickle.dumps(configs))
    assert first.shared_memory is second.shared_memory is not shared
    assert first.shared_memory.memory_bytes == 0


def test_configs_with_other_shared_memory_differ() -> None:
    """It is compared as the object that it is, whatever its size."""
    shared = t2e.SharedMemory()
    assert t2e.RuntimeConfig(shared_memory=shared) == t2e.RuntimeConfig(shared_memory=shared)
    assert t2e.RuntimeConfig(shared_memory=shared) != t2e.RuntimeConfig(shared_memory=t2e.SharedMemory())
