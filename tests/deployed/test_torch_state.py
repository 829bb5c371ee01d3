"""`torch2engine.deployed.torch_state`: each short cut says what the public function says."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from torch2engine.deployed import torch_state as _torch


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated:DeprecationWarning")
def test_is_traced_follows_jit_tracing() -> None:
    """While torch.jit.trace runs a function, the short cut sees it, and not before or after."""
    seen: list[tuple[bool, bool]] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append((_torch.tracing_state() is not None, torch.jit.is_tracing()))
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
