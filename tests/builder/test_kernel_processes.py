"""`torch2engine.builder.kernel_processes`: processes that fail cost no engine, and none is left behind."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support import onnx_models
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.builder import kernel_processes
from torch2engine.builder.build import build
from torch2engine.builder.child_process import BuilderProcess
from torch2engine.builder.kernel_processes import compile_beside
from torch2engine.builder.kernels import KernelRequest
from torch2engine.core.errors import BuildError
from torch2engine.trt.engine import Engine

CALLS = [(0, [[8, 4]]), (1, [[1, 4]]), (0, [[8, 4]])]


class LiveEngine:
    """The part of an engine that these processes need, where no engine can be live."""

    def __init__(self) -> None:
        self.contexts = 0
        self.added: list[bytes] = []

    def make_context(self) -> None:
        self.contexts += 1

    def runtime_cache(self) -> bytes:
        return b"known"

    def add_kernels(self, kernels: bytes) -> None:
        self.added.append(kernels)


@pytest.fixture
def artifact(tmp_path: Path) -> EngineArtifact:
    return build(onnx_models.relu(tmp_path), [{"batch": (1, 8, 32)}, {"batch": (1, 1, 1)}])


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[BuilderProcess]:
    """Those that are started, on a machine with memory and cores for them."""
    started: list[BuilderProcess] = []

    def start(precision: str) -> BuilderProcess:
        started.append(BuilderProcess(precision))
        return started[-1]

    monkeypatch.setattr(kernel_processes, "BuilderProcess", start)
    monkeypatch.setattr(kernel_processes, "free_memory_bytes", lambda: 2**40)
    monkeypatch.setattr(kernel_processes, "_free_host_bytes", lambda: 2**40)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.3, 0.0, 0.0))
    return started


def compile_for(artifact: EngineArtifact, engine: LiveEngine, calls: Any = CALLS, progress: Any = None) -> None:
    compile_beside(cast("Engine", engine), artifact, 0, calls, progress)


def test_request_survives_the_way_to_the_child(artifact: EngineArtifact, tmp_path: Path) -> None:
    """Every field comes back as it went."""
    request = KernelRequest(
        folder=str(tmp_path),
        plan_sha256=artifact.plan_sha256,
        signature=artifact.signature,
        profiles=artifact.profiles,
        precision="fp32",
        flavour="tensorrt_rtx",
        calls=CALLS,
        gpu_index=1,
        known_path="known",
        kernels_path="kernels",
        log_level=logging.INFO,
    )
    assert KernelRequest.from_json(request.to_json()) == request


def test_failure_of_the_processes_is_told_and_costs_no_engine(
    artifact: EngineArtifact, processes: list[BuilderProcess], caplog: pytest.LogCaptureFixture
) -> None:
    """Here they find no GPU. One is started for each call that differs, and none goes on for ever."""
    engine = LiveEngine()
    with caplog.at_level("INFO", logger="torch2engine.deploy"):
        compile_for(artifact, engine)
    assert "kernels are compiled at the first calls: NVIDIA driver: got no libcuda.so.1" in caplog.text
    assert (engine.contexts, engine.added) == (1, [])
    assert len(processes) == 2
    assert all(process.has_ended for process in processes)


def test_nothing_is_started_where_nothing_is_gained(
    artifact: EngineArtifact, processes: list[BuilderProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call alone, one idle core beside this process's, and too little memory on the host or on the GPU."""
    engine = LiveEngine()
    compile_for(artifact, engine, [CALLS[0], CALLS[2]])
    with monkeypatch.context() as small:
        small.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        compile_for(artifact, engine)
    with monkeypatch.context() as busy:
        busy.setattr(os, "getloadavg", lambda: (5.2, 0.0, 0.0))  # other ranks deploy as well
        compile_for(artifact, engine)
    with monkeypatch.context() as full:
        full.setattr(kernel_processes, "_free_host_bytes", lambda: 2**32)
        compile_for(artifact, engine)
    monkeypatch.setattr(kernel_processes, "free_memory_bytes", lambda: 2**32)
    compile_for(artifact, engine)
    assert (processes, engine.contexts) == ([], 0)


def test_tf32_is_compiled_by_another_process_alone(
    tmp_path: Path, processes: list[BuilderProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for one call, and on a busy machine: this process makes no context, since it compiles float32 kernels."""
    artifact = build(onnx_models.relu(tmp_path), [{"batch": (1, 8, 32)}, {"batch": (1, 1, 1)}], precision="tf32")
    monkeypatch.setattr(os, "getloadavg", lambda: (5.2, 0.0, 0.0))
    engine = LiveEngine()
    compile_for(artifact, engine, CALLS[:1])
    assert engine.contexts == 0
    assert [process._environment.get("NVIDIA_TF32_OVERRIDE") for process in processes] == [None]


def test_free_memory_of_the_host_is_some_of_its_memory() -> None:
    """It is read where the kernel and the process's group tell it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < kernel_processes._free_host_bytes() < whole


def test_cancel_ends_the_processes(artifact: EngineArtifact, processes: list[BuilderProcess]) -> None:
    """It is no failure that deploy could go on after."""
    with pytest.raises(BuildError, match="got False from progress in 'kernels'") as stopped:
        compile_for(artifact, LiveEngine(), progress=lambda *_: False)
    assert stopped.value.cancelled
    assert all(process.has_ended for process in processes)
