"""A precision + the options and the graph that go with it → the precision to lower to, or a refusal.

Enters: deploy's arguments, a graph. Leaves: a `Precision`, or a typed error. Separate because refusals come before any
work is done, and `lower` does the work.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from operator import length_hint
from pathlib import Path
from typing import Any

from torch import nn

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.torch_types import dtype_name
from torch2engine.core.config import BuildConfig, Precision, RuntimeConfig, check_tolerance, require_instance
from torch2engine.core.errors import InputError, InstallationError, PrecisionError
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.core.precision_outcome import PrecisionOutcome
from torch2engine.core.precisions import (
    CAST_PRECISIONS,
    FLOAT32_PRECISIONS,
    PRECISION_TYPES,
    QUANTIZED_PRECISIONS,
    lowest_cast_precision,
    quoted,
)
from torch2engine.onnx_graph.model_file import load_model
from torch2engine.onnx_graph.node_origins import origin_of
from torch2engine.onnx_graph.tensor_types import tensor_types
from torch2engine.precision.calibration import check_calibration

__all__ = [
    "checked_calibration",
    "needed_lowering",
    "require_lowered_nodes",
    "require_lowering_tools",
    "require_no_float64",
    "require_precision_of_live_parameters",
    "require_refittable_precision",
    "validated_precision",
]

_NAMED = 8  # places in one message


def validated_precision(
    precision: object, calibration: object, tolerance: object, config: BuildConfig, runtime_config: RuntimeConfig
) -> Precision:
    """Read deploy's precision, and refuse options that don't go with it.

    Raises:
        InputError: no precision or tolerance, or what `check_calibration` and `require_refittable_precision` refuse.
    """
    validated = Precision.of(precision)
    check_tolerance(tolerance)
    require_instance("config", config, BuildConfig)
    require_instance("runtime_config", runtime_config, RuntimeConfig)
    check_calibration(validated, calibration, runtime_config)
    require_refittable_precision(validated, config)
    return validated


def checked_calibration(calibration: Iterable[Any] | None) -> Iterable[Any] | None:
    """Refuse an iterator that has no item left, before the steps that take long. No other data are read yet.

    Returns:
        the same data. An iterator without a known length has given its first item, which the result gives first again.

    Raises:
        InputError: it has no item.
    """
    if not isinstance(calibration, Iterator) or length_hint(calibration):
        return calibration
    for first in calibration:
        return itertools.chain([first], calibration)
    raise InputError(
        "calibration",
        got="an iterator without an item",
        allowed="at least one input in the form of sample_input, though an iterator that was read before has none left",
        fix="pass a list, or make the iterator anew",
    )


def require_lowering_tools(precision: Precision, model: nn.Module) -> None:
    """Refuse a precision whose library is missing, before any work is done.

    Args:
        precision: the requested one.
        model: a model that is in this precision itself needs no library.

    Raises:
        InstallationError: naming the line that installs it.
    """
    row = PRECISION_TYPES[precision.dtype]
    if not row.module or find_spec(row.module) is not None:
        return
    dtypes = {dtype_name(tensor.dtype) for tensor in (*model.parameters(), *model.buffers())}
    if lowest_cast_precision(dtypes) != precision.dtype:
        raise InstallationError(
            row.package,
            got="no such package",
            allowed=f"{row.package} for precision '{precision.dtype}'",
            fix="pip install 'torch2engine[quantize]'",
        )


def require_precision_of_live_parameters(precision: Precision, live_parameters: Sequence[LiveParameter]) -> None:
    """Refuse what does not hold for every value of the live parameters.

    Low inputs would give them other dtypes. A quantised type has ranges that calibration found with the values of
    now: larger products with another value would be cut off without an error.

    Raises:
        InputError: naming what was requested beside them.
    """
    if not live_parameters:
        return
    if precision.low_io:
        raise InputError(
            "Precision.low_io",
            got="True with live_parameters",
            allowed="one of them, since live parameters keep the model's dtypes",
            fix="leave low_io out",
        )
    if precision.dtype in QUANTIZED_PRECISIONS:
        raise InputError(
            "precision",
            got=f"'{precision.dtype}' with live_parameters",
            allowed="a precision without calibrated ranges, which hold for the live parameters' present values alone",
            fix="use precision='fp16', or leave live_parameters out and replace new weights with refit()",
        )


def require_refittable_precision(precision: Precision, config: BuildConfig) -> None:
    """Refuse a refittable engine in a precision whose weights don't each follow from one weight of the module.

    Raises:
        InputError: an 8-bit or 4-bit precision, or low inputs and outputs.
    """
    if not config.refittable:
        return
    if precision.is_quantized or precision.low_io:
        refittable = (*FLOAT32_PRECISIONS, *CAST_PRECISIONS)
        raise InputError(
            "BuildConfig.refittable",
            got="True with " + (repr(precision.lowest_type) if precision.is_quantized else "low_io=True"),
            allowed=f"{quoted(refittable, 'or')}, with the model's own inputs and outputs",
            fix="leave refittable out, or take another precision",
        )


def needed_lowering(precision: Precision, artifact: OnnxArtifact) -> Precision:
    """Find the precision that an exported graph must still be lowered to.

    Returns:
        "fp32", which changes nothing, for a half model where half was requested. The quantisers' own precision for a
        model that has quantisers, where no low precision was requested. Otherwise the requested precision.
    """
    if artifact.precision in QUANTIZED_PRECISIONS:
        return precision if precision.changes_graph else Precision.of(artifact.precision)
    if precision.dtype == artifact.precision and precision.weights is None:
        return Precision()
    return precision


def require_no_float64(onnx_path: Path, precision: Precision) -> None:
    """Refuse float64 in a graph whose tensors are to be cast, because AutoCast would round it to less.

    Raises:
        InputError: naming the modules and the user's lines.
    """
    from onnx import TensorProto

    if precision.dtype not in CAST_PRECISIONS:
        return
    model = load_model(onnx_path)
    float64 = {name for name, element_type in tensor_types(model).items() if element_type == TensorProto.DOUBLE}
    origins = {origin_of(node) for node in model.graph.node if float64.intersection((*node.input, *node.output))}
    places = sorted(f"{origin.module!r} (at {origin.source})" for origin in origins)
    if places:
        raise InputError(
            f"precision '{precision.dtype}'",
            got="float64 in " + ", ".join(places[:_NAMED]),
            allowed="a model that computes in float32",
            fix="compute in float32 there, or deploy model.float() where its weights are float64",
        )


def require_lowered_nodes(outcome: PrecisionOutcome | None, precision: Precision) -> None:
    """Refuse a lowered graph without a node that computes in the precision.

    Raises:
        PrecisionError: with the reasons.
    """
    if outcome is None or outcome.low or precision.weights is not None:
        return
    reasons = "; ".join(map(str, outcome.kept[:4])) or "none has an operator that this precision changes"
    raise PrecisionError(
        f"precision '{precision.dtype}'",
        got=f"none of the graph's {outcome.nodes} floating-point nodes in it: {reasons}",
        allowed="at least one that computes in it",
        fix="leave precision out, or look at calibration data and keep_fp32",
    )
