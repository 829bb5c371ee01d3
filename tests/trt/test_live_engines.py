"""`torch2engine.trt.live_engines`: one live object for each content, among threads and after a fork."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from torch2engine.trt.live_engines import LiveObjects

THREADS = 8


class Thing:
    """What the table holds; `is_constant` as an engine that can't be refitted."""

    def __init__(self, is_constant: bool = True) -> None:
        self.is_constant = is_constant


def anything(thing: Thing) -> bool:
    """Whether it suits a caller who does not mind."""
    return True


@pytest.mark.usefixtures("quick_collection")
def test_one_object_for_each_key_as_long_as_it_is_held() -> None:
    """Holders of one key share one object; other keys have others; the last holder takes it along."""
    table: LiveObjects[str, Thing] = LiveObjects()
    first = table.find_or_make("plan on GPU 0", Thing, anything)
    assert table.find_or_make("plan on GPU 0", Thing, anything) is first
    assert table.find_or_make("plan on GPU 1", Thing, anything) is not first
    made: list[Thing] = []

    def counted() -> Thing:
        made.append(Thing())
        return made[-1]

    del first
    gc.collect()
    table.find_or_make("plan on GPU 0", counted, anything)
    assert len(made) == 1


def test_threads_that_come_at_once_make_one() -> None:
    """All threads wait for the first to make it."""
    table: LiveObjects[str, Thing] = LiveObjects()
    gate = threading.Barrier(THREADS)

    def take(_: int) -> Thing:
        gate.wait()
        return table.find_or_make("plan", Thing, anything)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(take, range(THREADS)))
    assert len(set(map(id, found))) == 1


def test_what_can_change_or_does_not_fit_is_not_shared() -> None:
    """An engine that can be refitted has one owner; so has one whose signature differs from the live one's."""
    table: LiveObjects[str, Thing] = LiveObjects()
    refittable = [table.find_or_make("plan", lambda: Thing(is_constant=False), anything) for _ in range(2)]
    assert refittable[0] is not refittable[1]
    shared = table.find_or_make("plan", Thing, anything)
    own = table.find_or_make("plan", Thing, lambda thing: False)
    assert own is not shared
    assert table.find_or_make("plan", Thing, anything) is shared


def test_failure_leaves_nothing_behind() -> None:
    """A maker that fails is tried again by the next."""
    table: LiveObjects[str, Thing] = LiveObjects()

    def fail() -> Thing:
        raise MemoryError

    with pytest.raises(MemoryError):
        table.find_or_make("plan", fail, anything)
    assert isinstance(table.find_or_make("plan", Thing, anything), Thing)


def test_forked_child_makes_its_own() -> None:
    """A child finds nothing of its parent's, even where another thread held the lock at the fork."""
    table: LiveObjects[str, Thing] = LiveObjects()
    parents = table.find_or_make("plan", Thing, anything)
    inside, leave = threading.Event(), threading.Event()

    def slow() -> Thing:
        inside.set()
        leave.wait()
        return Thing()

    thread = threading.Thread(target=table.find_or_make, args=("other", slow, anything))
    thread.start()
    inside.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of exactly what this test does
        child = os.fork()
    if child == 0:
        os._exit(int(table.find_or_make("plan", Thing, anything) is parents))
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    thread.join()
