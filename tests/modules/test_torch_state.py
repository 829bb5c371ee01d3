"""`torch2engine.modules.torch_state`: each short cut says what the public function says."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.autograd import forward_ad

from torch2engine.modules import torch_state as _torch
from torch2engine.trt import threads as _threads


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated:DeprecationWarning")
def test_is_traced_follows_jit_tracing() -> None:
    """While torch.jit.trace runs a function, the short cut sees it, and not before or after."""
    seen: list[tuple[bool, bool]] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append((_torch.is_traced() is not None, torch.jit.is_tracing()))
        return x + 1

    look(torch.ones(2))
    torch.jit.trace(look, torch.ones(2), check_trace=False)
    look(torch.ones(2))
    assert seen == [(False, False), (True, True), (False, False)]


def test_dual_level_follows_forward_ad() -> None:
    """Inside a level of forward-mode differentiation the short cut is not negative."""
    assert _torch.dual_level() < 0
    with forward_ad.dual_level():
        assert _torch.dual_level() >= 0
    assert _torch.dual_level() < 0


class Helper(threading.Thread):
    """A thread of a library's own class that only waits."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.stop = stop

    def run(self) -> None:
        self.stop.wait()


def test_is_alone_heeds_threads_that_may_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's thread counts, whether by target or by class; those of torch and of progress bars don't."""
    others = {_threads._home(thread) for thread in threading.enumerate() if thread is not threading.current_thread()}
    monkeypatch.setattr(_threads, "_HARMLESS", (*_threads._HARMLESS, *others))
    assert _threads.is_alone()
    stop = threading.Event()
    for thread in (threading.Thread(target=stop.wait), Helper(stop)):
        thread.start()
        assert not _threads.is_alone()
        monkeypatch.setattr(type(thread), "__module__", "tqdm._monitor")
        assert _threads.is_alone() is isinstance(thread, Helper)
        stop.set()
        thread.join()
        stop.clear()
    assert _threads.is_alone()


def test_is_alone_knows_pytorchs_own_threads() -> None:
    """The thread that pins a DataLoader's memory is told by the function that it runs."""
    from torch.utils.data._utils.pin_memory import _pin_memory_loop

    home = _threads._home(threading.Thread(target=_pin_memory_loop))
    assert home == "torch.utils.data._utils.pin_memory"
    assert f"{home}.".startswith(_threads._prefixes())
    assert not "torch.nn.parallel.parallel_apply.".startswith(_threads._prefixes())
