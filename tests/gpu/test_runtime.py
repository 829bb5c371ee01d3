"""The parts under TRTModule on a real engine: contexts, output allocators, private streams, graphs that fail.

Enters: an engine without its module. Leaves: proof of what lanes rely on. Apart from the module's tests because users
never see these parts.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch

import torch2engine as t2e
from tests.gpu.models import Scale
from tests.gpu.scenarios import capturing
from torch2engine.deployed import torch_state as _torch
from torch2engine.deployed.trt.output_tensors import TensorMemory, allocate_memory
from torch2engine.trt.context import Context
from torch2engine.trt.cuda_graph import DedicatedStream
from torch2engine.trt.engine import Engine


@pytest.fixture(scope="module")
def artifact() -> t2e.EngineArtifact:
    """x * 2 on [n, 64], exact."""
    axes = {"x": {0: t2e.Axis("n", 1, 64, 4096)}}
    return t2e.build(t2e.export(Scale(), torch.randn(4, 64, device="cuda"), axes))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_parent_binds_an_engine_in_its_first_call(artifact: t2e.EngineArtifact, backend: str) -> None:
    """torch.compile of a larger model leaves an engine that no call has bound yet out of its graphs."""
    module = t2e.TRTModule(artifact)
    parent = torch.nn.Sequential(torch.nn.Linear(64, 64), module, torch.nn.ReLU()).cuda().eval()
    torch._dynamo.reset()
    compiled = torch.compile(parent, backend=backend)
    with torch.no_grad():
        for size in (4, 7, 64):
            x = torch.randn(size, 64, device="cuda")
            torch.testing.assert_close(compiled(x), (parent[0](x) * 2).relu())
    torch._dynamo.reset()


def test_short_cuts_agree_with_the_public_functions() -> None:
    """Stream handle, device and capture state are those that torch.cuda reports, in a fresh thread too."""
    seen: list[tuple[object, object]] = []

    def look() -> None:
        for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                seen.append((_torch.stream_handle(0), torch.cuda.current_stream().cuda_stream))
                seen.append((_torch.current_device(), torch.cuda.current_device()))
                seen.append((_torch.is_capturing(), torch.cuda.is_current_stream_capturing()))

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    x = torch.ones(4, device="cuda")
    with capturing(torch.cuda.CUDAGraph()):
        x.add_(1)
        seen.append((_torch.is_capturing(), True))
    assert len(seen) == 13
    assert [pair for pair in seen if pair[0] != pair[1]] == []


def test_output_allocator_gives_shape_and_memory(artifact: t2e.EngineArtifact) -> None:
    """An output that TensorRT asks memory for has its shape, its values, and memory that later enqueues leave alone."""
    context = Engine(artifact, 0).make_context()
    stream = torch.cuda.Stream()
    name = artifact.signature.outputs[0].name
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def allocate(size_bytes: int) -> TensorMemory:
        return allocate_memory(torch.device("cuda"), size_bytes)

    for rows in (7, 300, 7):
        x = torch.randn(rows, 64, device="cuda")
        context.set_shapes(0, [x.shape], stream.cuda_stream)
        memory = torch.empty(context.memory_bytes() + 256, dtype=torch.uint8, device="cuda")
        context.set_memory(memory.data_ptr(), memory.numel())
        found = context.allocate_on_demand([name], allocate)[name]
        torch.cuda.synchronize()
        context.bind((x.data_ptr(), memory.data_ptr()))
        context.enqueue(stream.cuda_stream)
        torch.cuda.synchronize()
        assert found.error is None and found.shape == (rows, 64)
        assert found.memory is not None
        kept.append((found.memory.tensor[: x.numel() * 4].view(torch.float32).view(found.shape), x * 2))
    assert all(torch.equal(got, wanted) for got, wanted in kept)


def test_output_allocator_keeps_what_python_raised(artifact: t2e.EngineArtifact) -> None:
    """An error in the allocation, which TensorRT's bindings swallow, is there after the enqueue."""
    context = Engine(artifact, 0).make_context()
    stream = torch.cuda.Stream()
    x = torch.randn(7, 64, device="cuda")
    context.set_shapes(0, [x.shape], stream.cuda_stream)
    memory = torch.empty(context.memory_bytes() + 256, dtype=torch.uint8, device="cuda")
    context.set_memory(memory.data_ptr(), memory.numel())
    name = artifact.signature.outputs[0].name

    def allocate(size_bytes: int) -> TensorMemory:
        raise MemoryError(size_bytes)

    found = context.allocate_on_demand([name], allocate)[name]
    context.bind((x.data_ptr(), memory.data_ptr()))
    with pytest.raises(t2e.BuildError, match="enqueue"):
        context.enqueue(stream.cuda_stream)
    assert isinstance(found.error, MemoryError)


def test_own_stream_is_none_of_pytorchs() -> None:
    """PyTorch hands its streams out again; ours is never among them, and it orders as any stream."""
    x = torch.zeros(64, device="cuda")  # makes the context, in which the driver makes streams
    own = [DedicatedStream() for _ in range(4)]
    theirs = {torch.cuda.Stream(priority=priority).cuda_stream for priority in (0, -1) for _ in range(100)}
    handles = {stream.handle for stream in own}
    assert len(handles) == 4 and not handles & theirs
    stream = torch.cuda.ExternalStream(own[0].handle)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.add_(1)
    torch.cuda.current_stream().wait_stream(stream)
    assert x.sum().item() == 64


def _told(call: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return call(*inputs), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("fault", ["refused", "broken"])
def test_pitfall_33_graph_that_fails_is_told_and_done_without(
    artifact: t2e.EngineArtifact, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Where TensorRT can't be captured, one warning says why, and every answer is right all the same."""
    module = t2e.TRTModule(artifact, runtime_config=t2e.RuntimeConfig(cuda_graphs=True))
    enqueue = Context.enqueue

    def breaking(context: Context, stream: int) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            capturing = torch.cuda.is_current_stream_capturing()
        enqueue(context, stream)
        if capturing:
            torch.cuda.ExternalStream(stream).synchronize()  # which a capture forbids

    if fault == "refused":
        monkeypatch.setattr(Context, "why_not_capturable", lambda context, stream: "planted reason")
    else:
        monkeypatch.setattr(Context, "enqueue", breaking)
    texts: list[str] = []
    for rows in (5, 5, 5, 9, 9, 9, 5):
        x = torch.randn(rows, 64, device="cuda")
        result, told = _told(module, x)
        assert torch.equal(result, x * 2)
        texts += told
    assert len(texts) == 1
    assert texts[0].startswith("TRTModule answers without CUDA graphs from now on: ")
    assert ("planted reason" in texts[0]) == (fault == "refused")
