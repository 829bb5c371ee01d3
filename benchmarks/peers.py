"""Other ways to run the same model on the same inputs: what TRTModule is held against.

Enters: the model, its inputs at one shape, and the plan. Leaves: for each a call without arguments and the answer of
the last one. A peer that can't run says why; it is never left out without a word.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.raw import RawEngine
from torch2engine.core.tf32 import float32_arithmetic

__all__ = ["COMPILED", "PEERS", "TORCH_TENSORRT", "Peer", "eager", "eager_graph", "peer", "torch_tensorrt"]

Inputs = Mapping[str, torch.Tensor]


@dataclass
class Peer:
    """A way to run a model at one shape.

    Args:
        call: what is timed.
        answer: calls once and gives the answer, complete on the current stream.
        stream: the caller's; None for the default one.
        close: gives back what the peer holds.
        kept: what must stay alive.
    """

    call: Callable[[], object]
    answer: Callable[[], torch.Tensor]
    stream: torch.cuda.Stream | None = None
    close: Callable[[], object] = lambda: None
    kept: list[Any] = field(default_factory=list)


def eager(model: nn.Module, inputs: Inputs) -> Peer:
    """PyTorch as it is."""
    call = functools.partial(model, **inputs)
    return Peer(call, call)


def eager_graph(model: nn.Module, inputs: Inputs) -> Peer:
    """PyTorch's own kernels, captured once and replayed on the same input and result tensors."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(**inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = model(**inputs)

    def answer() -> torch.Tensor:
        graph.replay()
        return result.clone()

    return Peer(graph.replay, answer)


def compiled(model: nn.Module, inputs: Inputs, mode: str) -> Peer:
    """torch.compile, specialised to this shape."""
    call = functools.partial(torch.compile(model, dynamic=False, mode=mode), **inputs)
    # With reduce-overhead the next call overwrites the result.
    return Peer(call, lambda: call().clone())


def polygraphy(engine: RawEngine, inputs: Inputs) -> Peer:
    """Polygraphy's TrtRunner on the same plan with the same kernels; tensors stay on the GPU, inputs go unchecked."""
    if engine.rt.is_rtx:
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # read when it is imported
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    plan = EngineFromBytes(bytes(engine.artifact.plan_buffer()))()
    config = engine.config(engine=plan)
    profile = engine.profile([inputs[spec.name].shape for spec in engine.artifact.signature.inputs])
    with float32_arithmetic(engine.artifact.precision):
        made = engine.check(plan.create_execution_context(config), "Polygraphy's context")
        runner = TrtRunner(made, optimization_profile=profile or None)
        runner.activate()  # it chooses the profile
    call = functools.partial(runner.infer, dict(inputs), check_inputs=False, copy_outputs_to_host=False)
    name = engine.artifact.signature.outputs[0].name
    return Peer(call, lambda: call()[name].clone(), close=runner.deactivate, kept=[plan, config])


def raw(engine: RawEngine, inputs: Inputs) -> Peer:
    """`execute_async_v3` alone, with shapes, addresses and memory set beforehand."""
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    context = engine.context([inputs[spec.name] for spec in engine.artifact.signature.inputs], side)

    def answer() -> torch.Tensor:
        context.outputs[0].zero_()
        assert context.enqueue()
        return context.outputs[0].clone()

    return Peer(context.enqueue, answer, side, kept=[context])


def torch_tensorrt(model: nn.Module, inputs: Inputs) -> Callable[[bool], Peer]:
    """Torch-TensorRT, specialised to this shape, on the same TensorRT-RTX.

    Its C++ runtime is made for older versions of TensorRT-RTX, so this is its Python runtime.

    Returns:
        a function that gives the peer, with CUDA graphs or without. The mode holds for the whole process until the
        peer is closed, so only one of the two may be open.
    """
    library: Any = importlib.import_module("torch_tensorrt")
    arguments = tuple(inputs.values())
    module = library.compile(
        model,
        ir="dynamo",
        inputs=arguments,
        use_explicit_typing=True,
        min_block_size=1,
        use_python_runtime=True,
    )

    def opened(has_graph: bool) -> Peer:
        if not has_graph:
            call = functools.partial(module, *arguments)
            return Peer(call, call)
        context = library.runtime.enable_cudagraphs(module)
        call = functools.partial(context.__enter__(), *arguments)
        return Peer(call, call, close=lambda: context.__exit__(None, None, None))

    return opened


COMPILED = {"compile": "default", "compile_reduce_overhead": "reduce-overhead"}
TORCH_TENSORRT = {"torch_tensorrt": False, "torch_tensorrt_graph": True}  # name -> whether with CUDA graphs
PEERS = ("raw", "eager", "eager_graph", *COMPILED, *TORCH_TENSORRT, "polygraphy")


def peer(name: str, model: nn.Module, engine: RawEngine | None, inputs: Inputs) -> Peer:
    """Set up a peer by its name in `PEERS`; those of Torch-TensorRT come from `torch_tensorrt`."""
    if name in COMPILED:
        return compiled(model, inputs, COMPILED[name])
    if name in ("eager", "eager_graph"):
        return (eager if name == "eager" else eager_graph)(model, inputs)
    if engine is None:
        raise ValueError(f"{name} needs an engine")
    return (raw if name == "raw" else polygraphy)(engine, inputs)
