"""An engine + the precision of its graph → proof that it computes in that precision.

Enters: a TRTModule. Leaves: a report and notes, or a `PrecisionError`. Separate because TensorRT may compute a low
graph in float32 without a warning. Only its list of the engine's layers shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import PrecisionError
from torch2engine.core.precision_report import (
    UNKNOWN,
    MultiplyAddNode,
    PrecisionReport,
    total_multiply_adds,
)
from torch2engine.core.precisions import LOW_PRECISIONS
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.precision.computed_precisions import report_at_opt
from torch2engine.precision.graph.engine_layers import read_layers

__all__ = ["EnginePrecision", "count_layers", "require_precision", "verify_engine_precision"]

# The share of a low graph's multiply-adds that the engine must compute in the low type. TensorRT-RTX 1.6 has no fp8
# kernel for some convolutions (ResNet-50's first, ConvNeXt's depthwise ones), and computes them in float32 without a
# warning. That is mostly a small part of a network. Where it is more, the user must allow it.
_LEAST_SHARE = 0.9
_SHOWN = 8


@dataclass(frozen=True)
class EnginePrecision:
    """The precisions that an engine computes in.

    Args:
        report: the account; None for an engine without its ONNX model.
        notes: sentences for the user.
    """

    report: PrecisionReport | None
    notes: tuple[str, ...] = ()


def count_layers(module: TRTModule) -> int:
    """How many layers TensorRT lists of an engine; 0 where its words are not known."""
    return len(read_layers(module.layers()))


def verify_engine_precision(module: TRTModule, precision: str, cases: Sequence[ParityCase]) -> EnginePrecision:
    """Make sure that an engine computes in the low type what its graph has in this type.

    Args:
        module: the engine, with its ONNX.
        precision: the graph's; the engine's own may be called otherwise.
        cases: the parity cases; multiply-adds are counted at the sizes of the one at opt.

    Raises:
        PrecisionError: as `require_precision`.
    """
    onnx_path = module._artifact.checked_onnx_path  # pyright: ignore[reportPrivateUsage]  # a step that composes it
    if onnx_path is None:
        return EnginePrecision(None)
    is_low = precision in LOW_PRECISIONS
    report = report_at_opt(module, onnx_path, cases, may_run=is_low)
    return EnginePrecision(report, require_precision(report, precision, module.runtime) if is_low else ())


def require_precision(report: PrecisionReport, precision: str, runtime: str) -> tuple[str, ...]:
    """Compare what an engine computes in with what its graph has in a low precision.

    Args:
        report: of the engine.
        precision: the low precision.
        runtime: the engine's runtime, for the messages.

    Returns:
        notes on nodes that the engine computes in another precision, or that TensorRT does not list.

    Raises:
        PrecisionError: these nodes have more than a tenth of the graph's multiply-adds in this precision. Or TensorRT
            lists none of the nodes, and no layer in this precision.
    """
    nodes = [node for node in report.products if node.precision == precision]
    if not nodes:
        return (f"there is no convolution or matrix product in {precision} outside of branches and loops to verify",)
    otherwise = [node for node in nodes if node.engine not in (precision, UNKNOWN)]
    unknown = [node for node in nodes if node.engine == UNKNOWN]
    if not otherwise and not unknown:
        return ()
    total = total_multiply_adds(nodes) or 1
    otherwise_share = total_multiply_adds(otherwise) / total
    known_share = 1 - otherwise_share - total_multiply_adds(unknown) / total
    findings = (
        f"{runtime} computes {100 * known_share:.1f} % of the multiply-adds that the graph has in {precision} in it"
    )
    findings += f", not {_described_modules(otherwise)}" if otherwise else ""
    findings += f"; it does not tell of {_described_modules(unknown)}" if unknown else ""
    no_layer_has_it = len(unknown) == len(nodes) and bool(report.layers) and precision not in report.layers
    if otherwise_share <= 1 - _LEAST_SHARE and not no_layer_has_it:
        return (findings,)
    modules = sorted({node.module for node in otherwise})
    raise PrecisionError(
        f"precision '{precision}'",
        got=f"less of it: {findings}",
        allowed=f"at least {100 * _LEAST_SHARE:.0f} %",
        fix=f"take Precision('{precision}', keep_fp32={modules}) if these may stay as they are, or another precision",
    )


def _described_modules(nodes: Sequence[MultiplyAddNode]) -> str:
    """List the nodes' modules with what each is computed in, those with the most work first."""
    work: dict[str, int] = {}
    for node in nodes:
        computed_in = "" if node.engine == UNKNOWN else f" (in {node.engine})"
        description = (f"'{node.module}'" if node.module else "(model)") + computed_in
        work[description] = work.get(description, 0) + node.multiply_adds
    descriptions = sorted(work, key=lambda description: -work[description])
    more = f" and {len(descriptions) - _SHOWN} more" if len(descriptions) > _SHOWN else ""
    return ", ".join(descriptions[:_SHOWN]) + more
