"""Device memory that execution contexts work in, one after the other, and who uses it.

Enters: functions that allocate memory and wait for the work in it. Leaves: memory as large as the largest user needs,
until the last one leaves. Separate from the context pool because pools of several engines may share it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol
from weakref import ReferenceType, ref

from torch2engine.trt.memory import MemoryT

__all__ = ["WorkingMemory"]


class MemoryUser(Protocol):
    """One whose contexts and CUDA graphs contain the address of the memory."""

    def forget_memory(self) -> None:
        """Forget the address, with every CUDA graph that contains it; none of them is running."""
        ...


class WorkingMemory(Generic[MemoryT]):
    """Memory that its users work in by turns. It holds no user alive.

    Args:
        allocate: gives device memory of so many bytes.
        wait: waits until all work in the memory is done.

    Attributes:
        lock: where users share the memory, each holds this for its turn: preparing, capturing, enqueueing.
        memory: None before the first growth, and after the last user has left.
        wait: as passed.
    """

    def __init__(self, allocate: Callable[[int], MemoryT], wait: Callable[[], object]) -> None:
        self.lock = threading.Lock()
        self.memory: MemoryT | None = None
        self.wait = wait
        self._allocate = allocate
        # By id, and no WeakSet: one thread may leave while another one goes through all of them.
        self._users: dict[int, ReferenceType[MemoryUser]] = {}

    @property
    def size_bytes(self) -> int:
        """How many bytes it has now."""
        memory = self.memory
        return 0 if memory is None else memory.size_bytes

    def join(self, user: MemoryUser) -> None:
        """Count one more user."""
        self._users[id(user)] = ref(user)

    def grow(self, size_bytes: int) -> None:
        """Replace the memory by a larger one. Every user forgets its address first.

        Raises:
            BuildError: there is not enough; the old memory is gone then.
        """
        if self.memory is not None:
            self.wait()
            for user in self._living_users():
                user.forget_memory()
            self.memory = None  # before the allocation, which may need its room
        self.memory = self._allocate(size_bytes)

    def leave(self, user: MemoryUser) -> None:
        """Stop counting a user, whose work is through; the last one frees the memory.

        It never waits for the lock: the garbage collector may call it in a thread that holds the lock, or that its
        holder waits for. Nothing is lost by that, since a holder is a user itself and will leave later.
        """
        self._users.pop(id(user), None)
        if self._living_users() or not self.lock.acquire(blocking=False):
            return
        try:
            if not self._living_users():  # A new user can't have the address yet: it needs the lock for that.
                self.memory = None
        finally:
            self.lock.release()

    def _living_users(self) -> list[MemoryUser]:
        return [user for one in list(self._users.values()) if (user := one()) is not None]
