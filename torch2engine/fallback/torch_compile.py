"""torch.compile(model, backend="torch2engine"), the explanation of what it did, and deploy() for parts of a pipeline.

Enters: graphs from dynamo, a model with its inputs, or a pipeline with a call of it. Leaves: what answers in the place
of graphs and submodules, or an `Explanation`. Separate because only these import deploy(), which imports other files
of this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from torch2engine.capture.process_state import restored_random_state
from torch2engine.capture.recording import Recording, record
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import RuntimeConfig, Tolerance
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import DEFAULT_PRECISION
from torch2engine.core.pytree import Inputs, as_inputs
from torch2engine.deploy import deploy
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.explanation import Explanation
from torch2engine.deployed.module_access import runtime_kind
from torch2engine.fallback.compare_results import compare_results
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.graph_compiler import GraphCompiler
from torch2engine.fallback.measured_cost import check_whole
from torch2engine.fallback.run_record import RunRecord, obstacle_without_graph, time_calls
from torch2engine.fallback.submodules import (
    DeployedSubmodules,
    choose_submodules,
    note_on_uncalled,
    noted_children,
    without_swap,
)
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = [
    "compile_backend",
    "compile_beside_eager",
    "compile_if_faster",
    "deploy_submodules",
    "explain",
    "make_compiler",
]

_RUNTIMES: dict[str, Literal["tensorrt", "onnxruntime"]] = {"cuda": "tensorrt", "cpu": "onnxruntime"}


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
        options: see `CompileOptions`: runtime, precision, tolerance, config, runtime_config, cache, min_nodes,
            weights, only_faster.

    Raises:
        InputError: a mode, or an unknown option or value.

    >>> compiled = torch.compile(model, backend=t2e.compile_backend)
    >>> with torch.no_grad():
    ...     torch.allclose(compiled(sample), model(sample), atol=1e-5)
    True
    """
    if mode not in (None, "default"):
        raise InputError("mode", got=repr(mode), allowed="no mode", fix="pass options={...} instead")
    return make_compiler(CompileOptions.from_mapping(options), RunRecord()).compile(graph_module, example_inputs)


def compile_if_faster(
    model: nn.Module | Callable[..., Any], sample_input: Any, *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a model by torch.compile(backend="torch2engine"), and refuse the result if eager PyTorch is faster.

    Each graph stays in PyTorch whose engine is slower, as with the backend's option `only_faster`. That option knows
    one graph at a time. What torch.compile itself takes, such as its guards and what it runs between graphs, shows in
    whole calls alone. So calls of the compiled model are timed here beside calls of the model, in turns.

    Args:
        model: a module or function; it is called as it is, without gradients.
        sample_input: as for `deploy`, on the device where later calls are. Calls at other sizes are not timed.
        options: as for the backend. `only_faster` is set.

    Returns:
        what torch.compile made. It is called like the model.

    Raises:
        BuildError: a call takes over 3 % more time than in eager; with both times. Keep the model then.
        InputError: an unknown option or value, or no tensor in the sample.

    >>> try:
    ...     answer = t2e.compile_if_faster(model, sample)
    ... except t2e.BuildError:  # a model as small as this one is often faster in eager
    ...     answer = model
    >>> with torch.no_grad():
    ...     torch.allclose(answer(sample), model(sample), atol=1e-5)
    True
    """
    checked = replace(CompileOptions.from_mapping(options), only_faster=True)
    return compile_beside_eager(model, as_inputs(sample_input), checked, RunRecord())


def compile_beside_eager(
    model: nn.Module | Callable[..., Any], sample: Inputs, options: CompileOptions, record: RunRecord
) -> Callable[..., Any]:
    """Do what `compile_if_faster` promises. All engines are built before the first time is measured.

    Args:
        model: a module or function, compiled or not.
        sample: its arguments.
        options: for the graphs; with `only_faster`, engines are timed as well as the whole.
        record: takes what is found out about each graph.

    Raises:
        BuildError, InputError: as `compile_if_faster`.
    """
    inner = _uncompiled(model)
    compiled: Any = torch.compile(inner, backend=make_compiler(options, record).compile)
    tensors = [leaf for leaf in tree_leaves((sample.args, dict(sample.kwargs))) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise InputError(
            "sample_input", got="no tensor", allowed="at least one, whose device is timed", fix="pass the model's input"
        )

    def call() -> object:
        return compiled(*sample.args, **sample.kwargs)

    with torch.no_grad():
        record.may_time_engines = False
        call()
        record.may_time_engines = True
        call()
        check_whole("compiled model", call, lambda: inner(*sample.args, **sample.kwargs), tensors[0].device)
    return compiled


def _uncompiled(model: nn.Module | Callable[..., Any]) -> Any:
    """The module or function below torch's wrappers."""
    if isinstance(model, nn.Module):
        return unwrap(model)
    return getattr(model, "_torchdynamo_orig_callable", model)


def explain(
    model: nn.Module | Callable[..., Any], sample_input: Any, *, options: Mapping[str, Any] | None = None
) -> Explanation:
    """Say what of a model torch.compile(backend="torch2engine") runs in engines, what in PyTorch, and why.

    The model is compiled anew and called, in evaluation mode but otherwise as it is; a deployed engine comes from the
    cache where there is one.

    Args:
        model: a module or function, compiled or not. A deployed module explains itself; see its `explain`.
        sample_input: as for `deploy`.
        options: as for the backend.

    Returns:
        the parts with their share of the time, and every place in the code that no engine takes, by file and line.

    >>> [part.runs_in for part in t2e.explain(model, sample).parts]
    ['ONNX Runtime']
    """
    if isinstance(model, DeployedModule):
        return model.explain(sample_input)
    record = RunRecord()
    compiler = make_compiler(CompileOptions.from_mapping(options), record)
    inner = _uncompiled(model)
    compiled = torch.compile(inner, backend=compiler.compile)
    sample = as_inputs(sample_input)
    with torch.no_grad():
        explanation = time_calls(lambda: compiled(*sample.args, **sample.kwargs), record)
        if explanation.parts:
            return explanation
        obstacle = obstacle_without_graph(inner, sample)
    return explanation if obstacle is None else replace(explanation, obstacles=[obstacle])


def make_compiler(options: CompileOptions, record: RunRecord) -> GraphCompiler:
    """Make the compiler of the graphs of one model.

    Args:
        options: how graphs become engines.
        record: takes what they find out, for an explanation.
    """
    return GraphCompiler(options, partial(_deploy_part, options, record), record)


def _deploy_part(
    options: CompileOptions,
    record: RunRecord,
    part: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    dynamic_axes: Mapping[str, Any],
) -> DeployedModule[Any]:
    """Deploy a graph where its tensors are, and note the engine in the record.

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
    module = deploy(
        part,
        tensors,
        dynamic_axes,
        precision=options.precision,
        tolerance=options.tolerance,
        runtime=runtime,
        config=replace(options.config, compare_speed=False),  # nobody reads a part's report
        runtime_config=options.runtime_config if runtime == "tensorrt" else RuntimeConfig(),
        cache=options.cache,
        progress=None,
    )
    record.engines.append(module.signature)
    return module


def deploy_submodules(
    owner: Any,
    call: Callable[[], Any],
    patterns: Sequence[str],
    *,
    call_tolerance: Tolerance | None = None,
    **options: Any,
) -> DeployedSubmodules:
    """Deploy submodules of a model or a pipeline, and let the engines answer in their places.

    Your own code runs twice without gradients: in PyTorch, while the calls of the submodules are recorded, and with the
    engines. Sizes that varied between calls become axes. Each submodule is compared on its recorded inputs, and then
    the whole result is. The second run draws the random numbers of the first. Later, PyTorch answers calls of a
    submodule whose inputs require gradients, with one warning.

    Args:
        owner: a model, or an object with modules as attributes, such as a pipeline of diffusers.
        call: runs your code once, or at all sizes that matter, e.g. ``lambda: pipe("a cat")``; what it returns is
            compared.
        patterns: names of submodules as in a shell, e.g. ``["unet", "vae.decoder"]`` or ``["layers.*"]``.
        call_tolerance: when the whole result counts as equal; by default that of the engines' precision.
        options: as for `deploy`, for every submodule: precision, runtime, config, cache, fallback and so on. What
            holds for one alone, such as dynamic_axes or live_parameters, belongs into a call for that submodule.

    Returns:
        what restores and saves them. As a context manager it restores them at the end.

    Raises:
        InputError: a pattern that names no submodule, or calls that differ in more than sizes and values of tensors.
        ParityError: a submodule, or the whole result, is not what PyTorch gives; nothing is replaced then.
        Torch2EngineError: as `deploy`.

    >>> with t2e.deploy_submodules(model, lambda: model(sample), ["head"], runtime="onnxruntime"), torch.no_grad():
    ...     model(sample).shape  # the engine answers for model.head
    torch.Size([8, 10])
    """
    chosen = choose_submodules(owner, patterns)
    with restored_random_state(), torch.no_grad(), ExitStack() as hooks:
        recordings = {name: hooks.enter_context(record(module)) for name, module in chosen.items()}
        called_children = hooks.enter_context(noted_children(chosen))
        before = call()
    notes = [note_on_uncalled(name, called_children[name]) for name, one in recordings.items() if not one.was_called]
    modules = {name: _deploy_recorded(one, options) for name, one in recordings.items() if one.was_called}
    deployed = DeployedSubmodules.swap_in(chosen, modules)
    try:
        with restored_random_state(), torch.no_grad():
            after = call()
        parity = [compare_results(before, after, _bounds_of(modules, call_tolerance)).raise_if_failed()]
    except BaseException:
        deployed.restore()
        raise
    return replace(deployed, parity=parity, notes=notes)


def _deploy_recorded(recording: Recording, options: Mapping[str, Any]) -> DeployedModule[Any]:
    """Deploy a module that keeps its own forward while the engine answers in its place."""
    untyped: Any = deploy  # the options are the user's
    return untyped(replace(recording, model=without_swap(recording.model)), **options)


def _bounds_of(modules: Mapping[str, DeployedModule[Any]], tolerance: Tolerance | None) -> Bounds:
    """The bounds for a result of all modules: those of the loosest precision among them."""
    all_bounds = [Bounds.of(tolerance, module.precision, runtime_kind(module)) for module in modules.values()]
    return max(
        all_bounds, key=lambda bounds: bounds.tolerance.rel_l2 or 0.0, default=Bounds.of(tolerance, DEFAULT_PRECISION)
    )
