"""The builder's process loads its libraries beside the export, and builds while ONNX Runtime checks the graph."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Tiny, tiny_inputs
from torch2engine.builder import child_process
from torch2engine.core.progress import ProgressCallback

DEPLOY = importlib.import_module("torch2engine.deploy")


def heard_by(reports: list[tuple[str, int, int]]) -> ProgressCallback:
    return lambda phase, step, steps, seconds: reports.append((phase, step, steps))


def test_graph_is_checked_while_the_engine_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process of the builder, which was started before the export; the phases have seconds of their own."""
    reports: list[tuple[str, int, int]] = []
    started: list[int] = []
    real = child_process._start_command  # pyright: ignore[reportPrivateUsage]  # counts processes

    def counted(preload: list[str | None] | None) -> list[str]:
        started.append(len(reports))
        return real(preload)

    monkeypatch.setattr(child_process, "_start_command", counted)
    torch.manual_seed(0)
    module = t2e.deploy(Tiny().cuda().eval(), tiny_inputs(), TINY_AXES, cache=False, progress=heard_by(reports))
    assert len(started) == 1
    assert started[0] == reports.index(("export", 0, 1))
    at = [reports.index(one) for one in (("build", 0, 1), ("check", 0, 1), ("check", 1, 1), ("build", 1, 1))]
    assert at == sorted(at)
    assert module.report is not None
    assert {"check", "build"} <= module.report.seconds.keys()
    assert module.report.parity[0].subject == "PyTorch vs ONNX Runtime"


@pytest.mark.filterwarnings("ignore:an engine that was found for this request is not taken")
def test_wrong_graph_ends_the_build_and_leaves_a_cached_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names ONNX Runtime, as before a build; the engine of a right deploy stays in the cache."""
    torch.manual_seed(0)
    model, cache = Tiny().cuda().eval(), t2e.EngineCache(tmp_path)
    real = DEPLOY.answer_parity_cases

    def negated(*args: Any) -> Any:
        answers = real(*args)
        cases = [
            replace(case, outputs={name: -value for name, value in case.outputs.items()})
            for case in answers.parity_cases
        ]
        return replace(answers, parity_cases=cases)

    for entries in (0, 1):
        with monkeypatch.context() as wrong:
            wrong.setattr(DEPLOY, "answer_parity_cases", negated)
            with pytest.raises(t2e.ParityError, match=r"^parity, PyTorch vs ONNX Runtime"):
                t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=cache)
        assert len(cache.entries()) == entries
        t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=cache)
        assert len(cache.entries()) == 1


def test_cancel_in_the_check_ends_the_build() -> None:
    """Nothing waits for the engine of a deploy that its caller gave up."""

    def stop(phase: str, step: int, steps: int, seconds: float) -> bool:
        return phase != "check"

    with pytest.raises(t2e.BuildError) as stopped:
        t2e.deploy(Tiny().cuda().eval(), tiny_inputs(), TINY_AXES, cache=False, progress=stop)
    assert stopped.value.cancelled
