"""`torch2engine.trt.context_pool` with an engine whose contexts only note what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest

from torch2engine.core.errors import ShapeError
from torch2engine.trt.context_pool import ContextPool, PreparedShape
from torch2engine.trt.engine import Engine
from torch2engine.trt.working_memory import WorkingMemory


class FakeContext:
    """A context that needs a byte of memory for every row."""

    def __init__(self) -> None:
        self.is_worn = False
        self.rows = 0
        self.memory: tuple[int, int] | None = None

    def set_shapes(self, profile: int, shapes: Sequence[Sequence[int]], stream: int) -> list[tuple[int, ...]]:
        self.rows = shapes[0][0]
        if self.rows < 0:
            raise ShapeError("x", got="planted")
        return [(self.rows,)]

    def memory_bytes(self) -> int:
        return self.rows

    def set_memory(self, address: int, size_bytes: int) -> None:
        self.memory = (address, size_bytes)


class FakeEngine:
    """An engine that keeps the contexts that it made; its profile needs 100 bytes at most."""

    def __init__(self) -> None:
        self.made: list[FakeContext] = []

    def make_context(self) -> FakeContext:
        self.made.append(FakeContext())
        return self.made[-1]

    def memory_bytes(self, profile: int) -> int:
        return 100


@dataclass
class FakeMemory:
    """A piece of memory; every one has another address."""

    address: int
    size_bytes: int


class FakeOutputs:
    """Notes the outputs' shapes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def set_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes = list(shapes)

    def reset(self) -> None:
        pass


class FakeGraphs(list[str]):
    """Some graphs."""

    def drop(self) -> None:
        self.clear()

    def reset(self) -> None:
        self.clear()


class House:
    """A pool with all that it works with; `neighbour` is one whose memory it shares."""

    def __init__(self, max_contexts: int = 2, max_shapes: int = 3, neighbour: House | None = None) -> None:
        self.engine = FakeEngine()
        self.allocated: list[int] = []
        self.waits = 0
        self.clock = 0.0
        self.memory = WorkingMemory(self._allocate, self._wait) if neighbour is None else neighbour.memory
        self.pool: ContextPool[FakeOutputs, FakeGraphs, FakeMemory] = ContextPool(
            cast("Engine", self.engine), max_contexts, max_shapes, self.memory
        )

    def _allocate(self, size_bytes: int) -> FakeMemory:
        assert self.pool.memory is None, "the old memory goes before the new one comes"
        self.allocated.append(size_bytes)
        return FakeMemory(1000 * len(self.allocated), size_bytes)

    def _wait(self) -> None:
        self.waits += 1

    def call(self, rows: int) -> PreparedShape[FakeOutputs, FakeGraphs]:
        """What a call of so many rows does, up to its enqueue."""
        prepared = self.pool.prepared.get(((rows,),))
        if prepared is None:
            prepared = PreparedShape(((rows,),), 0, FakeOutputs(), FakeGraphs())
            self.pool.add(prepared)
        self.clock += 1
        prepared.last_used = self.clock
        self.pool.prepare(prepared, 0)
        prepared.enqueue_count += 1
        return prepared

    def holders(self) -> list[int]:
        """The shapes that hold a context."""
        return [shapes[0][0] for shapes, one in self.pool.prepared.items() if one.context is not None]


def context_of(prepared: PreparedShape[Any, Any]) -> FakeContext:
    """The fake that a shape holds."""
    return cast("FakeContext", prepared.context)


def test_shape_keeps_its_context() -> None:
    """Shapes that come again need nothing new."""
    house = House()
    first = house.call(5)
    context = first.context
    assert house.call(5) is first and first.context is context
    assert first.outputs.shapes == [(5,)]
    assert (len(house.engine.made), house.allocated, house.waits) == (1, [5], 0)


def test_context_used_least_recently_changes_its_shapes() -> None:
    """Beyond the limit of contexts a new shape takes over the oldest one; without graphs nobody waits."""
    house = House(max_contexts=2)
    first = house.call(5)
    context = first.context
    house.call(4)
    assert house.call(3).context is context
    assert first.context is None and first.enqueue_count == 0
    assert house.holders() == [4, 3]
    assert (len(house.engine.made), house.waits) == (2, 0)


def test_graphs_of_an_evicted_context_go_after_a_wait() -> None:
    """They may be running, and evictions are counted, since they make captures dear."""
    house = House(max_contexts=1)
    first = house.call(5)
    first.graphs.append("graph")
    house.call(4)
    assert (list(first.graphs), first.eviction_count, house.waits) == ([], 1, 1)


def test_worn_context_is_replaced() -> None:
    """A context that has changed its shapes often goes, after a wait, and counts no longer."""
    house = House(max_contexts=1)
    first = house.call(5)
    context_of(first).is_worn = True
    worn = first.context
    assert house.call(4).context is not worn
    assert (len(house.engine.made), house.waits) == (2, 1)
    house.call(3)
    assert len(house.engine.made) == 2


def test_shape_used_least_recently_is_forgotten() -> None:
    """Beyond the limit of shapes the oldest one goes, and its context is spare."""
    house = House(max_contexts=3, max_shapes=3)
    for rows in (5, 4, 3, 5, 2):
        house.call(rows)
    assert [shapes[0][0] for shapes in house.pool.prepared] == [5, 3, 2]
    assert len(house.engine.made) == 3


def test_memory_grows_with_some_to_spare() -> None:
    """At least half as much again, but never more than the profile needs; graphs go, since they know addresses."""
    house = House()
    first = house.call(60)
    first.graphs.append("graph")
    house.call(61)
    assert house.allocated == [60, 90]
    assert (list(first.graphs), first.eviction_count, house.waits) == ([], 0, 1)
    house.call(60)
    assert context_of(first).memory == (2000, 90)
    house.call(91)
    house.call(100)
    assert house.allocated == [60, 90, 100]


def test_refused_shapes_leave_the_pool_usable() -> None:
    """A context that TensorRT could not set to its shapes goes after a wait, and another one takes its place."""
    house = House(max_contexts=1)
    house.call(5)
    with pytest.raises(ShapeError, match="planted"):
        house.call(-1)
    assert (house.holders(), house.waits) == ([], 1)
    assert house.call(5).outputs.shapes == [(5,)]
    assert len(house.engine.made) == 2


def test_interrupted_change_of_shapes_drops_the_context() -> None:
    """Nobody may use a context whose change of profile later work can't wait for."""
    house = House(max_contexts=1)
    prepared = PreparedShape(((5,),), 0, FakeOutputs(), FakeGraphs())
    house.pool.add(prepared)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        house.pool.prepare(prepared, 0, interrupted)
    assert prepared.context is None
    house.call(5)
    assert len(house.engine.made) == 2


def test_dropped_context_is_made_anew() -> None:
    """What failed is forgotten with its graphs; the shape and its outputs stay known."""
    house = House(max_contexts=1)
    prepared = house.call(5)
    prepared.graphs.append("graph")
    house.pool.drop_context(prepared)
    house.pool.drop_context(prepared)  # which changes nothing
    assert (prepared.context, len(prepared.graphs), prepared.outputs.shapes) == (None, 0, [(5,)])
    assert house.call(5) is prepared and prepared.context is not None
    assert len(house.engine.made) == 2


def test_only_warm_shapes_are_handed_over() -> None:
    """A shape that was never enqueued, or has lost its context, stays; one that goes makes room for another context."""
    house = House(max_contexts=1)
    assert house.pool.hand_over(((5,),)) is None
    first = house.call(5)
    house.call(4)
    assert house.pool.hand_over(first.shapes) is None
    second = house.pool.hand_over(((4,),))
    assert second is not None and second.context is not None and second.memory is None
    assert house.call(4) is not second
    assert len(house.engine.made) == 2


def test_dropped_contexts_leave_room_for_as_many() -> None:
    """Two shapes take turns with a context each, before and after."""
    house = House(max_contexts=2)
    house.call(5)
    house.call(4)
    house.pool.drop_contexts()
    for rows in (5, 4, 5, 4):
        house.call(rows)
    assert (house.holders(), len(house.engine.made)) == ([5, 4], 4)


def test_close_gives_everything_back() -> None:
    """Contexts, shapes and memory go; without their contexts, shapes and memory may stay."""
    house = House()
    first = house.call(5)
    house.pool.drop_contexts()
    assert (first.context, house.holders(), house.waits) == (None, [], 1)
    assert house.pool.memory is not None
    house.call(5)
    assert (len(house.engine.made), house.allocated) == (2, [5])
    house.pool.close()
    assert (house.pool.prepared, house.pool.memory, first.context) == ({}, None, None)


def test_pools_that_share_memory_need_the_largest_share() -> None:
    """One pool's growth takes the address from the other, with every graph that contains it."""
    house = House()
    neighbour = House(neighbour=house)
    small = house.call(5)
    small.graphs.append("graph")
    large = neighbour.call(50)
    large.graphs.append("graph")
    assert (house.allocated, neighbour.allocated, house.memory.size_bytes) == ([5, 50], [], 50)
    assert (list(small.graphs), small.memory, list(large.graphs)) == ([], None, ["graph"])
    assert small.context is not None and small.enqueue_count == 1
    house.call(5)
    assert context_of(small).memory == context_of(large).memory == (2000, 50)
    assert (house.allocated, house.waits) == ([5, 50], 1)


def test_pool_that_closes_leaves_shared_memory_to_the_others() -> None:
    """The last pool to close frees it."""
    house = House()
    neighbour = House(neighbour=house)
    house.call(5)
    kept = neighbour.call(4)
    house.pool.close()
    assert kept.memory is neighbour.pool.memory is not None
    neighbour.pool.close()
    assert neighbour.pool.memory is None
