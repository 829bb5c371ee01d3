"""What may be lowered, and what a lowered model is asked and answers.

Enters: a precision, a graph, a signature, examples. Leaves: refusals, and the same in the low dtypes. Apart from
`lowering`, which makes and judges graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.config import (
    QUANTIZED,
    BuildConfig,
    Precision,
    RuntimeConfig,
    Tolerance,
    check_tolerance,
    of_kind,
)
from torch2engine.core.errors import InputError, PrecisionError
from torch2engine.core.spec import Signature, TensorSpec
from torch2engine.onnx_graph.model_file import load_model
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.onnx_graph.tensor_types import tensor_types
from torch2engine.precision.calibration import check_calibration
from torch2engine.precision.graph.outcome import PrecisionOutcome

__all__ = [
    "as_typed",
    "asked_for",
    "bounds_of",
    "check_low",
    "check_refittable",
    "check_types",
    "judged_on",
    "retyped_signature",
    "settled",
]


def settled(precision: Precision, artifact: OnnxArtifact) -> Precision:
    """What is left to be done.

    A half model that was asked for in half is that already, and one with quantisers of its own is deployed in theirs.
    """
    if artifact.precision in QUANTIZED and not precision.changes_graph:
        return Precision(artifact.precision)
    if artifact.precision not in QUANTIZED and precision.dtype == artifact.precision and precision.weights is None:
        return Precision()
    return precision


def bounds_of(precision: Precision, tolerance: Tolerance | None) -> Tolerance:
    """When a lowered graph counts as equal: by its budget, else as asked, else by its precision's default."""
    budget = precision.budget
    # Weights in int4 alone leave the dtype as it was, but answer as roughly as int8.
    judged_as = "int8" if precision.weights else precision.dtype
    return (budget.tolerance if budget is not None else None) or tolerance or Tolerance.default(judged_as)


def judged_on(examples: Sequence[ParityCase], precision: Precision) -> Sequence[ParityCase]:
    """The examples that a precision is judged on: without random ones for ranges that are those of real data."""
    if precision.dtype not in QUANTIZED:
        return examples
    return [example for example in examples if not example.name.endswith("random")]


def asked_for(
    precision: object, calibration: object, tolerance: object, config: BuildConfig, runtime_config: RuntimeConfig
) -> Precision:
    """deploy's precision, once everything that is asked with it goes together.

    Raises:
        InputError: no precision or tolerance, or what `check_calibration` and `check_refittable` refuse.
    """
    asked = Precision.of(precision)
    check_tolerance(tolerance)
    of_kind("config", config, BuildConfig)
    of_kind("runtime_config", runtime_config, RuntimeConfig)
    check_calibration(asked, calibration, runtime_config)
    check_refittable(asked, config)
    return asked


def check_refittable(precision: Precision, config: BuildConfig) -> None:
    """Refuse precisions whose graphs hold weights that don't follow from the module's one by one.

    Raises:
        InputError: an 8-bit or 4-bit precision, or low inputs and outputs.
    """
    if not config.refittable:
        return
    low_bits = precision.dtype in QUANTIZED or precision.weights is not None
    if low_bits or precision.low_io:
        raise InputError(
            "BuildConfig.refittable",
            got="True with " + (repr(precision.weights or precision.dtype) if low_bits else "low_io=True"),
            allowed="'fp32', 'tf32', 'fp16' or 'bf16', with the model's own inputs and outputs",
            fix="leave refittable out, or take another precision",
        )


def check_low(outcome: PrecisionOutcome | None, precision: Precision) -> None:
    """Refuse a graph in which nothing is low, whoever wanted it so.

    Raises:
        PrecisionError: with the reasons.
    """
    if outcome is None or outcome.low or precision.weights is not None:
        return
    word = precision.dtype
    why = "; ".join(map(str, outcome.kept[:4])) or "none has an operator that this precision changes"
    raise PrecisionError(
        f"precision '{word}'",
        got=f"none of the graph's {outcome.nodes} floating-point nodes would compute in it: {why}",
        allowed="at least one that does",
        fix="leave precision out, or look at calibration data and keep_fp32",
    )


def check_types(path: Path, precision: Precision) -> None:
    """Refuse float64, which AutoCast would round to less.

    Raises:
        InputError: naming the modules.
    """
    from onnx import TensorProto

    model = load_model(path)
    of_node = node_modules(model)
    double = {name for name, number in tensor_types(model).items() if number == TensorProto.DOUBLE}
    found = {of_node[node.name] for node in model.graph.node if double.intersection((*node.input, *node.output))}
    if found and precision.dtype in ("fp16", "bf16"):
        raise InputError(
            f"precision '{precision.dtype}'",
            got="float64 in " + ", ".join(repr(module) for module in sorted(found)[:8]),
            allowed="a model that computes in float32",
            fix="deploy model.float(), or convert to float64 outside of the model",
        )


def retyped_signature(signature: Signature, precision: Precision) -> Signature:
    """The signature with float32 ends in the low type, if that was asked."""
    if not precision.low_io:
        return signature
    dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision.dtype]

    def typed(spec: TensorSpec) -> TensorSpec:
        return replace(spec, dtype=dtype) if spec.dtype == "float32" else spec

    return replace(
        signature,
        inputs=tuple(typed(spec) for spec in signature.inputs),
        outputs=tuple(typed(spec) for spec in signature.outputs),
    )


def as_typed(example: ParityCase, signature: Signature, word: str) -> ParityCase:
    """An example in the dtypes of a lowered signature.

    Raises:
        InputError: an answer that the dtype can't hold.
    """
    inputs = tuple(
        leaf.to(torch_dtype(spec.dtype)) for leaf, spec in zip(example.inputs, signature.inputs, strict=True)
    )
    outputs: dict[str, torch.Tensor] = {}
    for spec in signature.outputs:
        exact = example.outputs[spec.name]
        outputs[spec.name] = typed = exact.to(torch_dtype(spec.dtype))
        if exact.is_floating_point() and not typed.isfinite().equal(exact.isfinite()):
            raise InputError(
                "Precision.low_io",
                got=f"output '{spec.name}' reaches {float(exact[exact.isfinite()].abs().max()):.3g}",
                allowed=f"answers that {word} can hold",
                fix="leave low_io out",
            )
    return replace(example, inputs=inputs, outputs=outputs)
