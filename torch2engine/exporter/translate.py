"""torch's program → an ONNX model in memory, by torch.onnx's dynamo exporter.

Enters: an ExportedProgram. Leaves: an ONNXProgram, optimised by exact rules, and for a refittable model the program
that computes its weights. Separate because all that is particular to torch.onnx's call stays here.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from torch2engine.capture.source_lines import user_source
from torch2engine.core.errors import ExportError, UnsupportedOperatorError
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.core.wording import quote
from torch2engine.exporter.batch_norm_translation import batch_norm_translations
from torch2engine.exporter.computed_constants import compute_constants
from torch2engine.exporter.decompositions.table import exact_decompositions
from torch2engine.exporter.masked_rows import write_masks_as_where
from torch2engine.exporter.operator_registry import reused_operator_registry
from torch2engine.exporter.optimize import exact_rewrites, optimize
from torch2engine.exporter.recurrent import recurrent_translations
from torch2engine.exporter.torch_program import (
    failed_node,
    has_mixed_norm,
    value_dependent_nodes,
    without_onnx_form,
)
from torch2engine.exporter.trace_weights import WeightTracer
from torch2engine.exporter.type_promotion import recorded_results_reused
from torch2engine.exporter.value_checks import erase_value_checks

__all__ = ["OPSET", "TranslatedModel", "translate_to_onnx"]

# 22 is the first opset whose Conv and pooling take bfloat16. ONNX Runtime and TensorRT 10, 11 and RTX understand it. It
# has no Attention (opset 23), which RTX 1.6 does not build in float32, and one form of which makes it crash.
OPSET = 22

_FAILED_NODE = re.compile(r"%(\w+) : \[num_users=\d+\] = call_function\[target=torch\.ops\.([\w.]+)\]")
_NO_ONNX_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.:]+)', overload='(\w+)'\)>")


@dataclass(frozen=True)
class TranslatedModel:
    """An ONNX model in memory.

    Args:
        onnx_program: torch.onnx.ONNXProgram, whose weights are the live ones until it is saved.
        weights: how the ONNX graph's weights follow from the module; None unless it is to be refitted.
    """

    onnx_program: Any
    weights: WeightTracer | None


def translate_to_onnx(
    program: torch.export.ExportedProgram, precision: str, refittable_model: nn.Module | None
) -> TranslatedModel:
    """Decompose, translate and optimise a program.

    Args:
        program: from torch.export.
        precision: the lowest in the program.
        refittable_model: the module whose weights the ONNX graph shall follow; None for a graph of fixed weights.

    Raises:
        ExportError: torch.onnx fails, or its graph is in another opset.
        UnsupportedOperatorError: operators without an ONNX form; names each with its module and line.
    """
    # The rewrite rules of onnxscript 0.7 fold a BatchNorm of another dtype than its convolution in its own dtype, in
    # bfloat16 as float32, and in float16 with its rounding. Such a node stays: TensorRT folds it, in float32.
    kind = PRECISION_TYPES[precision]
    may_rewrite = refittable_model is not None or kind.is_rewritten
    folds_norms = kind.folds_batch_norm and not has_mixed_norm(program)
    weights: WeightTracer | None = None
    erase_value_checks(program)
    program = write_masks_as_where(program)
    with (
        exact_decompositions(program, refittable_model is not None) as decomposed,
        exact_rewrites(folds_norms) as rules_are_exact,
    ):
        _require_sizes_from_shapes(decomposed)
        rewrite = may_rewrite and rules_are_exact
        optimized_by_torch = rewrite and refittable_model is None
        onnx_program = _call_torch_onnx(decomposed, optimized_by_torch)
        if refittable_model is not None:
            weights = WeightTracer(onnx_program.model, refittable_model)
            weights.optimize(partial(optimize, onnx_program.model, rewrite))
        elif optimized_by_torch:
            compute_constants(onnx_program.model)
        else:
            optimize(onnx_program.model, rewrite)
    opset = onnx_program.model.opset_imports.get("")
    if opset != OPSET:
        raise ExportError(
            "torch.onnx",
            got=f"a graph in opset {opset}",
            allowed=f"opset {OPSET}",
            fix="install another version of torch",
        )
    return TranslatedModel(onnx_program, weights)


def _require_sizes_from_shapes(program: torch.export.ExportedProgram) -> None:
    """Refuse sizes that depend on values. ONNX Runtime has them, but one contract holds for every runtime.

    Raises:
        UnsupportedOperatorError: naming every such node.
    """
    nodes = value_dependent_nodes(program)
    if nodes:
        raise UnsupportedOperatorError(
            "model",
            nodes=nodes,
            got=f"a size that depends on values, from {', '.join(sorted({node.op for node in nodes}))}",
            allowed="sizes that follow from the inputs' shapes",
            fix="keep the whole tensor and mask it, e.g. with torch.where(mask, x, 0), or take a fixed count with topk",
        )


def _call_torch_onnx(program: torch.export.ExportedProgram, optimized: bool) -> Any:
    """Call torch.onnx.export with every option, so that another torch's defaults change nothing."""
    options: dict[str, Any] = {
        "dynamo": True,
        "kwargs": None,
        "opset_version": OPSET,
        "optimize": optimized,
        "external_data": True,
        "dynamic_shapes": None,
        "dynamic_axes": None,
        "input_names": None,
        "output_names": None,
        "custom_translation_table": {**recurrent_translations(), **batch_norm_translations()},
        "export_params": True,
        "keep_initializers_as_inputs": False,
        "report": False,
        "verify": False,
        "profile": False,
        "dump_exported_program": False,
        "verbose": False,
    }
    if _takes_fallback():
        options["fallback"] = False
    try:
        with reused_operator_registry(), recorded_results_reused():
            return torch.onnx.export(program, (), None, **options)
    except Exception as error:
        raise _explain_failure(error, program) from error


def _takes_fallback() -> bool:
    """Whether this torch has the option `fallback`, which is gone since torch 2.12."""
    return "fallback" in inspect.signature(cast("Any", torch.onnx.export)).parameters


def _explain_failure(error: Exception, program: torch.export.ExportedProgram) -> Exception:
    """Name every node whose operator has no ONNX form, with its module and line."""
    causes = _chain_of_causes(error)
    without_function: list[tuple[str, str]] = _NO_ONNX_FUNCTION.findall("\n".join(map(str, causes)))
    operators = {f"{name}.{overload}".replace(".default", "") for name, overload in without_function}
    if operators:
        nodes = without_onnx_form(program, operators, OPSET)
        return UnsupportedOperatorError(
            "torch.onnx",
            nodes=nodes,
            got=f"no ONNX form for {', '.join(sorted({node.op for node in nodes}))}",
            allowed="operators that have one",
            fix="write these lines with other PyTorch operators",
        )
    quoted = "; ".join(map(quote, causes[-2:]))  # the last ones say what it was
    failed = _FAILED_NODE.search("\n".join(map(str, causes)))
    if failed is None:
        return ExportError(
            "torch.onnx",
            got=f"a failure on this program: {quoted}",
            allowed="operators that have an ONNX form",
            fix="write the line with other PyTorch operators, or see the cause of this exception (`__cause__`)",
            source=user_source(error),
        )
    node = failed_node(program, failed[1], failed[2].replace(".default", ""), quoted, OPSET)
    return UnsupportedOperatorError(
        "torch.onnx",
        nodes=[node],
        got=f"a form of {node.op} that it can't translate",
        allowed="operators that have an ONNX form",
        fix="write this line with other PyTorch operators",
    )


def _chain_of_causes(error: BaseException) -> list[BaseException]:
    """The error, then its cause, then that one's, without end in a circle."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain
