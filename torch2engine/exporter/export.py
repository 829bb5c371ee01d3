"""`CapturedCall` → `OnnxArtifact`, by torch.export and torch.onnx's dynamo exporter.

Enters: the settled call. Leaves: model.onnx under the signature's names, dynamic dimensions symbolic under the axes'
names, each node with its torch module and source line. A room of its own because here every known way in which the
exporters change a model without an error is closed.
"""

from __future__ import annotations

import gc
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.capture.captured_call import CapturedCall, resized
from torch2engine.capture.reference import Reference, flatten_result
from torch2engine.capture.source_lines import user_source
from torch2engine.core.constants import EXTERNAL_ABOVE_BYTES
from torch2engine.core.errors import DynamicAxisError, ExportError, InputError, UnsupportedOperatorError
from torch2engine.core.spec import Axis, Signature, TensorSpec
from torch2engine.exporter import onnx_names as _graph
from torch2engine.exporter import torch_program as _program
from torch2engine.exporter.decompositions.table import exact_decompositions
from torch2engine.exporter.fake_quant import as_operators
from torch2engine.exporter.optimize import exact_rewrites, optimize
from torch2engine.exporter.shape_guards import record_guards, tied, translate
from torch2engine.exporter.trace_weights import Weights

__all__ = ["OPSET", "export_onnx"]

# 22: the first opset whose Conv and pooling take bfloat16; ONNX Runtime and TensorRT 10, 11 and RTX understand it; and
# it has no Attention (opset 23), which RTX 1.6 does not build in float32 and crashes on in one form.
OPSET = 22


class _FlatModule(nn.Module):
    """The model as a function from a tuple of tensors to a tuple of tensors, so that torch sees no other structure."""

    def __init__(self, captured: CapturedCall) -> None:
        super().__init__()
        self.model = captured.reference.model
        self._captured = (captured,)

    def forward(self, leaves: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (captured,) = self._captured
        signature = captured.signature
        args, kwargs = Reference(self.model, signature.parameters, signature.preprocess).arguments(leaves)
        flat = flatten_result(self.model(*args, **kwargs))
        if flat.tree != signature.output:
            raise ExportError(
                "model",
                got="its result has another structure while it is exported than when it is called",
                allowed="one structure",
                fix="don't look at torch.compiler.is_exporting() and the like in forward",
            )
        return tuple(flat.leaves)


def export_onnx(captured: CapturedCall, refittable: bool = False) -> OnnxArtifact:
    """Export to ONNX; run it inside `undisturbed(model)`.

    Args:
        captured: the settled call.
        refittable: write down in weights.json how the graph's weights follow from parameters and buffers, whose values
            then decide nothing about the graph.

    Returns:
        an artifact in a scratch folder: model.onnx, with model.onnx.data beside it above 2 GB.

    Raises:
        DynamicAxisError: the model pins an axis, or holds only for a part of its range; names the user's line.
        ExportError: torch can't trace the model, or the graph that came out is not the one asked for.
        UnsupportedOperatorError: operators without an ONNX form.
    """
    try:
        return _exported(captured, refittable)
    finally:
        # torch's exported programs are reference cycles that hold the model, its weights and the sample.
        gc.collect()


def _exported(captured: CapturedCall, refittable: bool) -> OnnxArtifact:
    with _quiet(), as_operators(captured.reference.model) as quantized:
        program, source_of = _trace(captured)
        symbols = _symbols(program, captured.signature, source_of)
        signature = replace(captured.signature, outputs=_outputs(program, captured.signature, symbols))
        _check_output_axes(signature, captured.output_axes)
        if quantized and refittable:
            raise InputError(
                "BuildConfig.refittable",
                got=f"True for a model with {quantized} quantisers of its own",
                allowed="a model whose weights are in the graph as they are",
                fix="leave refittable out",
            )
        precision = quantized or _program.lowest_precision(program) or captured.precision
        model, weights = _to_onnx(program, precision, captured.reference.model if refittable else None)
        graph = model.model.graph
        if quantized:
            _graph.drop_saturation(graph)
        _graph.name_tensors(graph, [s.name for s in signature.inputs], [s.name for s in signature.outputs])
        _graph.name_axes(graph, symbols, [s.shape for s in (*signature.inputs, *signature.outputs)])
        _graph.record_origins(graph, _forward_source(captured.reference.model))
        owner = scratch_folder()
        path = Path(owner.path) / "model.onnx"
        size = sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        # Saved at once: an ONNXProgram reads the live weights when it is saved.
        model.save(
            str(path),
            include_initializers=True,
            keep_initializers_as_inputs=False,
            external_data=size > EXTERNAL_ABOVE_BYTES,
        )
        if weights is not None:
            write_file(path.with_name(WEIGHTS), weights.program().to_json())
    _verify(path, signature)
    return OnnxArtifact(
        owner.path,
        owner=owner,
        signature=signature,
        profiles=captured.profiles,
        precision=precision,
        versions={name: version(name) for name in ("torch", "onnx", "onnxscript")},
    )


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the exporters' remarks on their own internals."""
    names = (
        "torch.onnx._internal.exporter",
        "torch.onnx._internal.exporter._registration",
        "torch._export",
        "onnxscript",
        "onnx_ir",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _export_size(axis: Axis) -> int:
    """A size to trace with: torch fixes sizes 0 and 1, of the axis or of its number of steps, as constants."""
    _, opt, high = axis.range
    return next(size for size in (opt, high) if size // axis.multiple_of >= 2)


def _trace(captured: CapturedCall) -> tuple[torch.export.ExportedProgram, Callable[[str], str]]:
    """torch's program, and for an axis the user's line that constrained it."""
    signature = captured.signature
    sizes = {axis.name: _export_size(axis) for axis in signature.axes}
    # Clones: one tensor passed twice would become one input.
    leaves = tuple(
        resized(leaf, spec.sized(sizes)) for leaf, spec in zip(captured.sample, signature.inputs, strict=True)
    )
    dims = {axis.name: _dim(axis) for axis in signature.axes}
    shapes = tuple(
        {index: dims[dim] for index, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in signature.inputs
    )
    axis_of = {
        (leaf, index): dim
        for leaf, spec in enumerate(signature.inputs)
        for index, dim in enumerate(spec.shape)
        if isinstance(dim, str)
    }
    with record_guards() as guards:
        try:
            program = torch.export.export(
                _FlatModule(captured),
                (leaves,),
                None,
                dynamic_shapes=(shapes,),
                strict=False,
                preserve_module_call_signature=(),
                prefer_deferred_runtime_asserts_over_guards=False,
            )
        except Exception as error:
            raise translate(error, guards, axis_of) from error
    return program, partial(guards.source, axis_of)


def _dim(axis: Axis) -> Any:
    low, _, high = axis.range
    step = axis.multiple_of
    if step == 1:
        return torch.export.Dim(axis.name, min=low, max=high)
    return step * torch.export.Dim(f"_{axis.name}", min=low // step, max=high // step)


def _symbols(
    program: torch.export.ExportedProgram, signature: Signature, source_of: Callable[[str], str]
) -> dict[str, str]:
    """torch's symbol -> axis name, or "(name/step)"; proves that each dynamic dimension still is one.

    Raises:
        DynamicAxisError: a dimension came out fixed, tied to another, or its range narrower than asked.
    """
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    symbols: dict[str, str] = {}
    for spec, name in zip(signature.inputs, names, strict=True):
        for index, dim in enumerate(spec.shape):
            if not isinstance(dim, str):
                continue
            axis = signature.axis(dim)
            size = placeholders[name].meta["val"].shape[index]
            free: list[Any] = [] if isinstance(size, int) else list(size.node.expr.free_symbols)
            if len(free) != 1:
                raise DynamicAxisError(
                    f"axis '{dim}'",
                    axis=dim,
                    got=f"torch.export fixed it to {size} in input '{spec.name}'",
                    allowed=f"a free axis {axis.min}..{axis.max}",
                    fix=f"compute with x.shape instead of numbers, or leave '{dim}' out of dynamic_axes",
                    source=source_of(dim),
                )
            step, (low, _, high) = axis.multiple_of, axis.range
            name_of = dim if step == 1 else f"({dim}/{step})"
            other = symbols.setdefault(str(free[0]), name_of)
            if other != name_of:
                raise tied(other.strip("()").partition("/")[0], dim, source_of)
            found = cast("Any", program.range_constraints).get(free[0])
            if found is not None and (found.lower > max(low // step, 2) or found.upper < high // step):
                lowest = low if found.lower <= 2 else found.lower * step  # below 2 torch's range says nothing
                raise DynamicAxisError(
                    f"axis '{dim}'",
                    axis=dim,
                    got=f"the model holds only for {lowest}..{min(found.upper * step, high)}",
                    allowed=f"{low}..{high} was asked",
                    fix="narrow the Axis to that range, or change the line so that it holds for every size",
                    source=source_of(dim),
                )
    return symbols


def _outputs(
    program: torch.export.ExportedProgram, signature: Signature, symbols: Mapping[str, str]
) -> tuple[TensorSpec, ...]:
    """The outputs with expressions over axis names for their dynamic dimensions."""
    import sympy

    values = {node.name: node for node in program.graph.nodes}
    # Symbol, not sympify: axes may be called N or S, which sympy reads as its own functions.
    names = {symbol: expression.strip("()").partition("/")[0] for symbol, expression in symbols.items()}
    sizes = {symbol: sympy.Symbol(name) / signature.axis(name).multiple_of for symbol, name in names.items()}
    specs: list[TensorSpec] = []
    results = [s.arg.name for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    for spec, name in zip(signature.outputs, results, strict=True):
        shape: list[int | str] = []
        for size in values[name].meta["val"].shape:
            if isinstance(size, int):
                shape.append(size)
                continue
            expr: Any = size.node.expr
            expr = expr.xreplace({symbol: sizes[str(symbol)] for symbol in expr.free_symbols if str(symbol) in sizes})
            shape.append(int(expr) if expr.is_Integer else str(expr))
        specs.append(replace(spec, shape=tuple(shape)))
    return tuple(specs)


def _check_output_axes(signature: Signature, wanted: Mapping[str, Mapping[int, str | None]]) -> None:
    """dynamic_axes entries for outputs must agree with what the model does."""
    for spec in signature.outputs:
        for dim, axis in wanted.get(spec.name, {}).items():
            found = spec.shape[dim] if -len(spec.shape) <= dim < len(spec.shape) else None
            if not isinstance(found, str) or (axis is not None and axis != found):
                raise DynamicAxisError(
                    f"dynamic_axes[{spec.name!r}]",
                    axis=axis or "",
                    got=f"dimension {dim} is {axis or 'dynamic'!r}",
                    allowed=f"the model's output is {spec}",
                    fix="name them as the model computes them, or leave outputs out: they follow from the inputs",
                )


def _to_onnx(
    program: torch.export.ExportedProgram, precision: str, refitted: nn.Module | None
) -> tuple[torch.onnx.ONNXProgram, Weights | None]:
    """The graph, and if the module is to be refitted how its weights follow from it."""
    # The rewrite rules fold BatchNorm into a convolution as float32 where it is bfloat16, and in its own dtype where
    # the convolution has another (onnxscript 0.7): fold only constants there.
    rewrite = precision != "bf16" and not _program.has_mixed_norm(program)
    options: dict[str, Any] = {
        "dynamo": True,
        "kwargs": None,
        "opset_version": OPSET,
        "optimize": rewrite,
        "external_data": True,
        "dynamic_shapes": None,
        "dynamic_axes": None,
        "input_names": None,
        "output_names": None,
        "custom_translation_table": None,
        "export_params": True,
        "keep_initializers_as_inputs": False,
        "report": False,
        "verify": False,
        "profile": False,
        "dump_exported_program": False,
        "verbose": False,
    }
    if "fallback" in inspect.signature(cast("Any", torch.onnx.export)).parameters:  # gone since torch 2.12
        options["fallback"] = False
    weights: Weights | None = None
    with exact_rewrites() as exact, exact_decompositions(program) as program:
        try:
            rewrite = (rewrite or refitted is not None) and exact
            options["optimize"] = rewrite and refitted is None
            model: Any = torch.onnx.export(program, (), None, **options)
        except Exception as error:
            raise _untranslatable(error, program) from error
        assert model is not None
        if refitted is not None:
            weights = Weights(model.model, refitted)
            weights.optimize(partial(optimize, model.model, rewrite))
        elif not rewrite:
            optimize(model.model, rewrite)
    opset = model.model.opset_imports.get("")
    if opset != OPSET:
        raise ExportError("torch.onnx", got=f"the graph came out in opset {opset}", allowed=f"opset {OPSET}")
    return model, weights


_NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.:]+)', overload='(\w+)'\)>")


def _untranslatable(error: Exception, program: torch.export.ExportedProgram) -> Exception:
    """Name every node whose operator has no ONNX form, with its module and line."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(map(str, chain))
    found: list[tuple[str, str]] = _NO_FUNCTION.findall(text)
    operators = {f"{name}.{overload}".replace(".default", "") for name, overload in found}
    if operators:
        nodes = _program.without_onnx_form(program, operators, OPSET)
        return UnsupportedOperatorError(
            "torch.onnx",
            nodes=nodes,
            got=f"no ONNX form for {', '.join(sorted({node.op for node in nodes}))}",
            fix="write these lines with other PyTorch operators",
        )
    said = [f"{type(part).__name__}: {next(iter(str(part).strip().splitlines()), '')}" for part in chain]
    return ExportError("torch.onnx", got="; ".join(said[-2:]), source=user_source(error))  # the last say what it was


def _forward_source(model: nn.Module) -> str:
    try:
        return f"{inspect.getsourcefile(type(model))}:{inspect.getsourcelines(type(model).forward)[1]}"
    except (OSError, TypeError):
        return type(model).__qualname__


def _verify(path: Path, signature: Signature) -> None:
    """Read the file back: a valid model, with the signature's inputs and outputs, symbolic where it says so."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError("torch.onnx", got=f"the graph that came out is invalid: {error}") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    found = [(value.name, _shape(value)) for value in graph.input]
    wanted = [(spec.name, list(spec.shape)) for spec in signature.inputs]
    outputs = [value.name for value in graph.output]
    if found != wanted or outputs != [spec.name for spec in signature.outputs]:
        raise ExportError(
            "torch.onnx",
            got=f"the file has inputs {found} and outputs {outputs}",
            allowed=f"inputs {wanted} and outputs {[spec.name for spec in signature.outputs]}",
        )


def _shape(value: Any) -> Sequence[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
