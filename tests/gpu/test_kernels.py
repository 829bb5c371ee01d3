"""Kernels that other processes have compiled, on a real GPU."""

from __future__ import annotations

import logging
from typing import cast

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.builder import kernel_processes
from torch2engine.builder.kernel_processes import compile_beside
from torch2engine.deploy_steps import kernels_for_cases
from torch2engine.deployed.module_access import artifact_of, live_engine_of

AXES = {"input": {0: t2e.Axis("batch", 1, 8, 16)}}
PROFILES = [{"batch": (1, 8, 16)}, {"batch": (1, 1, 1)}]


@pytest.fixture(autouse=True)
def _three_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine has means for three processes, however busy it is."""
    monkeypatch.setattr(kernel_processes, "_possible_processes", lambda artifact: 3)


class Block(nn.Module):
    """Adds to its input, so that a deep stack of them still answers to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + torch.tanh(self.linear(input))


def deep(blocks: int = 80) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(blocks))).cuda().eval()


def sample() -> torch.Tensor:
    return torch.randn(8, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(1))


def test_engine_has_the_kernels_of_all_calls() -> None:
    """What several processes compile adds up, and the engine compiles nothing more at these shapes."""
    exported = t2e.export(deep(4), sample(), AXES, profiles=PROFILES)
    module = t2e.TRTModule(t2e.build(exported)).bind("cuda")
    engine = live_engine_of(module)
    artifact = cast("EngineArtifact", artifact_of(module))
    calls = [(0, [[8, 64]]), (0, [[16, 64]]), (1, [[1, 64]])]
    heard: list[tuple[str, int, int]] = []
    compile_beside(engine, artifact, 0, calls, lambda phase, step, steps, seconds: heard.append((phase, step, steps)))
    assert heard[0] == ("kernels", 0, 3)
    assert heard[-1] == ("kernels", 3, 3)
    before = len(engine.runtime_cache())
    for batch in (8, 16, 1):
        t2e.testing.assert_parity(deep(4), module, torch.randn(batch, 64, device="cuda"))
    assert len(engine.runtime_cache()) == before > 0


def test_deploy_of_a_deep_model_compiles_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it takes long; a shallow model's kernels are there sooner than a process."""
    heard: list[str] = []
    model = deep()
    module = t2e.deploy(
        model,
        sample(),
        AXES,
        profiles=PROFILES,
        cache=False,
        progress=lambda phase, step, steps, seconds: heard.append(phase),
    )
    assert "kernels" in heard
    for batch in (1, 5, 8, 16):
        t2e.testing.assert_parity(model, module, torch.randn(batch, 64, device="cuda"))

    def refuse(*arguments: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(kernels_for_cases, "compile_beside", refuse)
    shallow = t2e.deploy(deep(2), sample(), AXES, profiles=PROFILES, cache=False)
    assert shallow.report is not None and shallow.report.passed


def test_deploy_goes_on_where_the_processes_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine compiles for itself."""
    real = kernel_processes.KernelRequest

    def damaged(**fields: object) -> kernel_processes.KernelRequest:
        return real(**{**fields, "plan_sha256": "0" * 64})  # type: ignore[arg-type]  # the fields are the request's own

    monkeypatch.setattr(kernel_processes, "KernelRequest", damaged)
    with caplog.at_level(logging.INFO, logger="torch2engine.deploy"):
        module = t2e.deploy(deep(), sample(), AXES, profiles=PROFILES, cache=False)
    assert "kernels are compiled at the first calls: kernels: got a plan that has changed" in caplog.text
    t2e.testing.assert_parity(deep(), module, sample())


def test_cancel_while_kernels_are_compiled_ends_deploy() -> None:
    """As in every other phase."""
    with pytest.raises(t2e.BuildError, match="got False from progress in 'kernels'") as stopped:
        t2e.deploy(
            deep(),
            sample(),
            AXES,
            profiles=PROFILES,
            cache=False,
            progress=lambda phase, step, steps, seconds: phase != "kernels",
        )
    assert stopped.value.cancelled
