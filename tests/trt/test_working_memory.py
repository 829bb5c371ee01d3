"""`torch2engine.trt.working_memory` with memory of bytearrays: who gets how much, and when it is freed."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass, field

import pytest

from torch2engine.core.errors import BuildError
from torch2engine.trt.working_memory import WorkingMemory


class HostMemory:
    """Bytes in the host's memory."""

    def __init__(self, size_bytes: int) -> None:
        self.content = bytearray(size_bytes)
        self.address = id(self.content)
        self.size_bytes = size_bytes


@dataclass(eq=False)
class User:
    """Notes when it must forget the address, in the list that the memory writes to as well."""

    name: str
    events: list[str] = field(default_factory=list)

    def forget_memory(self) -> None:
        self.events.append(f"{self.name} forgets")


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def memory(events: list[str]) -> WorkingMemory[HostMemory]:
    def allocate(size_bytes: int) -> HostMemory:
        if size_bytes > 1000:
            raise BuildError("execution context", got="too much")
        events.append(f"allocated {size_bytes}")
        return HostMemory(size_bytes)

    return WorkingMemory(allocate, lambda: events.append("waited"))


def test_growth_waits_and_all_users_forget_the_address_first(
    memory: WorkingMemory[HostMemory], events: list[str]
) -> None:
    """The first memory needs no wait; a larger one comes after the work in the old one, and after its address."""
    users = [User("first", events), User("second", events)]
    for user in users:
        memory.join(user)
    assert memory.size_bytes == 0
    memory.grow(10)
    assert events == ["allocated 10"]
    memory.grow(20)
    assert events[1:] == ["waited", "first forgets", "second forgets", "allocated 20"]
    assert memory.size_bytes == 20


def test_memory_is_freed_by_the_last_user(memory: WorkingMemory[HostMemory], events: list[str]) -> None:
    """It stays while one user is left; whoever comes later gets memory of its own size."""
    first, second = User("first", events), User("second", events)
    memory.join(first)
    memory.join(second)
    memory.grow(10)
    memory.leave(first)
    memory.leave(first)  # which changes nothing
    assert memory.size_bytes == 10
    memory.leave(second)
    assert (memory.memory, memory.size_bytes) == (None, 0)
    memory.join(first)
    memory.grow(5)
    assert memory.size_bytes == 5


def test_failed_growth_leaves_no_address(memory: WorkingMemory[HostMemory], events: list[str]) -> None:
    """The old memory has gone to make room; users have forgotten it, so the next growth begins anew."""
    user = User("only", events)
    memory.join(user)
    memory.grow(10)
    with pytest.raises(BuildError):
        memory.grow(2000)
    assert (memory.memory, events[-1]) == (None, "only forgets")
    memory.grow(30)
    assert memory.size_bytes == 30


def test_memory_keeps_no_user_alive(memory: WorkingMemory[HostMemory], events: list[str]) -> None:
    """A user that is gone without a word is neither asked to forget nor waited for."""
    gone, left = User("gone", events), User("left", events)
    memory.join(gone)
    memory.join(left)
    memory.grow(10)
    del gone
    gc.collect()
    memory.grow(20)
    assert events[1:] == ["waited", "left forgets", "allocated 20"]
    memory.leave(left)
    assert memory.memory is None


def test_leaving_never_waits_for_the_lock(memory: WorkingMemory[HostMemory], events: list[str]) -> None:
    """While another thread has its turn, a user leaves at once; that thread's user still has the memory."""
    busy, leaving = User("busy", events), User("leaving", events)
    memory.join(busy)
    memory.join(leaving)
    memory.grow(10)
    has_turn, may_end = threading.Event(), threading.Event()

    def take_turn() -> None:
        with memory.lock:
            has_turn.set()
            assert may_end.wait(60)

    thread = threading.Thread(target=take_turn)
    thread.start()
    assert has_turn.wait(60)
    memory.leave(leaving)
    assert memory.size_bytes == 10
    may_end.set()
    thread.join()
    memory.leave(busy)
    assert memory.memory is None
