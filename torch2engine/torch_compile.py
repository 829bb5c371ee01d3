"""torch.compile(model, backend="torch2engine"), and the explanation of what it did.

Enters: graphs from dynamo, or a model with its inputs. Leaves: callables in the graphs' place, or an `Explanation`.
Separate because only these two put deploy() and the folder `fallback` together, from above both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import InputError
from torch2engine.core.pytree import as_inputs
from torch2engine.deploy import deploy
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.explanation import Explanation, RunRecord, time_calls
from torch2engine.fallback.graph_compiler import GraphCompiler
from torch2engine.fallback.parts_module import PartsModule
from torch2engine.modules.deployed import DeployedModule

__all__ = ["compile_backend", "explain"]

_RUNTIMES = {"cuda": "tensorrt", "cpu": "onnxruntime"}


def compile_backend(
    graph_module: fx.GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile one graph of torch.compile, as its backend "torch2engine".

    It needs no import of this package: ``torch.compile(model, backend="torch2engine", options={"precision": "fp16"})``.

    A graph is deployed at its first call, with the same checks as `deploy`. What no engine takes stays in PyTorch:
    `explain` says what, where and why. Axes that dynamo finds dynamic get an optimization profile whose largest size
    grows by powers of two, up to that of `torch._dynamo.mark_dynamic(..., max=...)`. Weights may change at any time.
    Calls that need gradients are answered by PyTorch, with one warning.

    Args:
        graph_module, example_inputs: from dynamo.
        mode: none but "default".
        options: see `CompileOptions`: runtime, precision, tolerance, config, runtime_config, cache, min_nodes, weights.

    Raises:
        InputError: a mode, or an unknown option or value.

    >>> import torch, torch2engine
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> compiled = torch.compile(model, backend=torch2engine.compile_backend)
    >>> x = torch.rand(3, 4)
    >>> with torch.no_grad():
    ...     torch.allclose(compiled(x), model(x), atol=1e-5)
    True
    """
    if mode not in (None, "default"):
        raise InputError("mode", got=repr(mode), allowed="no mode", fix="pass options={...} instead")
    return _compiler(CompileOptions.from_mapping(options), RunRecord()).compile(graph_module, example_inputs)


def explain(
    model: nn.Module | Callable[..., Any], sample_input: Any, *, options: Mapping[str, Any] | None = None
) -> Explanation:
    """Say what of a model torch.compile(backend="torch2engine") runs in engines, what in PyTorch, and why.

    The model is compiled anew and called, in evaluation mode but otherwise as it is; a deployed engine comes from the
    cache where there is one.

    Args:
        model: a module or function, compiled or not.
        sample_input: as for `deploy`.
        options: as for the backend.

    Returns:
        the parts with their share of the time, and every place in the code that no engine takes, by file and line.

    >>> import torch, torch2engine
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> [part.runs_in for part in torch2engine.explain(model, torch.rand(3, 4)).parts]
    ['ONNX Runtime']
    """
    record = RunRecord()
    compiler = _compiler(CompileOptions.from_mapping(options), record)
    inner: Any = unwrap(model) if isinstance(model, nn.Module) else getattr(model, "_torchdynamo_orig_callable", model)
    compiled = torch.compile(inner, backend=compiler.compile)
    sample = as_inputs(sample_input)
    with torch.no_grad():
        return time_calls(lambda: compiled(*sample.args, **sample.kwargs), record)


def _compiler(options: CompileOptions, record: RunRecord) -> GraphCompiler:
    return GraphCompiler(options, partial(_deploy_part, options), record)


def _deploy_part(
    options: CompileOptions, part: nn.Module, tensors: Mapping[str, torch.Tensor], dynamic_axes: Mapping[str, Any]
) -> DeployedModule[Any]:
    """Deploy a graph where its tensors are.

    Raises:
        InputError: on devices that the runtime does not have.
        Torch2EngineError: as `deploy`.
    """
    devices = {tensor.device for tensor in (*part.parameters(), *part.buffers(), *tensors.values())}
    names = ", ".join(sorted(map(str, devices)))
    if len(devices) != 1:
        raise InputError("tensors", got=f"devices {names}", allowed="one device", fix="move them to one device")
    runtime = _RUNTIMES.get(next(iter(devices)).type)
    if runtime is None or options.runtime not in ("auto", runtime):
        raise InputError(
            "tensors", got=f"device {names}", allowed=f"one that runtime={options.runtime!r} has", fix="move them there"
        )
    deployed = deploy(
        part,
        tensors,
        dynamic_axes,
        precision=options.precision,
        tolerance=options.tolerance,
        runtime=runtime,
        config=options.config,
        runtime_config=options.runtime_config if runtime == "tensorrt" else RuntimeConfig(),
        cache=options.cache,
        progress=None,
    )
    assert not isinstance(deployed, PartsModule), "it was not asked to fall back"
    return deployed
