"""`torch2engine.trt.cuda_graph_policy`: which calls may be captured, and which threads forbid it."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from torch2engine.core.threads import thread_origin
from torch2engine.trt import cuda_graph_policy
from torch2engine.trt.cuda_graph_policy import (
    CapturePolicy,
    is_harmless,
    no_thread_may_synchronize,
)


@dataclass
class History:
    """How often a shape was enqueued, and how often it lost its context."""

    enqueue_count: int
    eviction_count: int = 0


@pytest.mark.parametrize(("cuda_graphs", "enqueues"), [(True, 1), ("auto", 2)])
def test_shape_is_warm_after_a_few_enqueues(cuda_graphs: bool | str, enqueues: int) -> None:
    """One enqueue is enough where graphs are forced, two otherwise; each lost context doubles that, up to 64 times."""
    policy = CapturePolicy(cuda_graphs)
    assert not policy.is_warm(History(enqueues - 1))
    assert policy.is_warm(History(enqueues))
    for evictions, factor in ((1, 2), (3, 8), (6, 64), (100, 64)):
        assert not policy.is_warm(History(enqueues * factor - 1, evictions))
        assert policy.is_warm(History(enqueues * factor, evictions))


def test_third_failure_ends_captures() -> None:
    """A capture that fails is tried again twice."""
    policy = CapturePolicy("auto")
    for _ in range(2):
        policy.count_failure()
        assert policy.is_enabled
    policy.count_failure()
    assert not policy.is_enabled
    assert not CapturePolicy(False).is_enabled


def test_found_thread_pauses_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are not looked at for every call, and not at all where the user has forced graphs."""
    looks: list[bool] = []
    monkeypatch.setattr(cuda_graph_policy, "no_thread_may_synchronize", lambda: looks.append(True))
    policy = CapturePolicy("auto")
    assert not policy.check_threads(10.0)
    assert policy.is_paused(10.05)
    assert not policy.check_threads(10.05)
    assert len(looks) == 1
    assert not policy.is_paused(10.11)
    assert not policy.check_threads(10.11)
    assert len(looks) == 2
    assert CapturePolicy(True).check_threads(10.0)
    assert len(looks) == 2


def test_threads_are_harmless_without_a_package_that_synchronizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has loaded neither PyTorch nor its like has no thread that waits for a whole device."""
    monkeypatch.setattr(cuda_graph_policy, "_SYNCHRONIZING_PACKAGES", ("torch_of_nobody",))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert no_thread_may_synchronize()
    monkeypatch.setattr(cuda_graph_policy, "_SYNCHRONIZING_PACKAGES", (sys.__name__,))
    assert not no_thread_may_synchronize()
    stop.set()
    thread.join()


class Helper(threading.Thread):
    """A thread of a library's own class that only waits."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.stop = stop

    def run(self) -> None:
        self.stop.wait()


def test_policy_heeds_threads_that_may_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's thread counts, whether by target or by class; those of torch and of progress bars don't."""
    here = threading.current_thread()
    others = {thread_origin(thread) for thread in threading.enumerate() if thread is not here}
    monkeypatch.setattr(cuda_graph_policy, "_HARMLESS_PACKAGES", (*cuda_graph_policy._HARMLESS_PACKAGES, *others))
    monkeypatch.setattr(cuda_graph_policy, "_SYNCHRONIZING_PACKAGES", (threading.__name__,))
    assert no_thread_may_synchronize()
    stop = threading.Event()
    for thread in (threading.Thread(target=stop.wait), Helper(stop)):
        thread.start()
        assert not no_thread_may_synchronize()
        monkeypatch.setattr(type(thread), "__module__", "tqdm._monitor")
        assert no_thread_may_synchronize() is isinstance(thread, Helper)
        stop.set()
        thread.join()
        stop.clear()
    assert no_thread_may_synchronize()


def test_policy_knows_pytorchs_own_threads() -> None:
    """The thread that pins a DataLoader's memory is told by the function that it runs."""
    from torch.nn.parallel.parallel_apply import parallel_apply
    from torch.utils.data._utils.pin_memory import _pin_memory_loop

    thread = threading.Thread(target=_pin_memory_loop)
    assert thread_origin(thread) == "torch.utils.data._utils.pin_memory"
    assert is_harmless(thread)
    assert not is_harmless(threading.Thread(target=parallel_apply))


def test_worker_of_a_pool_is_harmless_while_it_has_no_work() -> None:
    """Inductor keeps such a pool after a compilation; a worker that does something may wait for a device."""
    started, stop = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        stop.wait()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(work)
        started.wait()
        (worker,) = pool._threads
        assert not is_harmless(worker)
        stop.set()
        first.result()
        while not is_harmless(worker):  # it waits for work a moment after it has given its result
            started.wait(0.001)
    assert not is_harmless(worker)
