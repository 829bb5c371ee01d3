"""One step of `benchmarks.trust` in a process of its own: deploy an ordinary model, or call one many times.

Enters: words on the command line. Leaves: JSON on the last line. Apart because deploying is the CPU's work, which
several processes share, and because a model that takes too long can then be ended.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks._worker import keep_to, parser
from benchmarks.ordinary_models import ORDINARY
from torch2engine.core.config import Tolerance
from torch2engine.parity.parity_report import OutputParity, ParityReport

__all__ = ["main"]

BATCH = t2e.Axis("batch", 1, 2, 4)
UNBOUNDED = Tolerance(rel_l2=1e6, max_rel=1e9, mismatch=1.0)
CALLS = 200
SHAPES = (1, 4, 8)  # of the batch


def deploy_all(name: str, device: str, precisions: Sequence[str]) -> dict[str, Any]:
    """Deploy a model in several precisions, and say how far each candidate is off."""
    torch.manual_seed(0)
    entry = ORDINARY[name]
    model = entry.make().to(device)
    inputs = {key: value.to(device) for key, value in entry.inputs().items()}
    return {precision: _deploy(model, inputs, precision, device) for precision in precisions}


def _deploy(model: nn.Module, inputs: dict[str, torch.Tensor], precision: str, device: str) -> dict[str, Any]:
    start = time.perf_counter()
    found: dict[str, Any] = {"verdict": "passed"}
    try:
        module = _deployed(model, inputs, precision, device, None)
    except t2e.ParityError as error:
        found |= {"verdict": "refused", "reason": str(error).splitlines()[0][:400]}
        if precision == "fp16":
            found["half_model"] = _error_of_half(model, inputs)
        try:
            module = _deployed(model, inputs, precision, device, UNBOUNDED)  # for the figures alone
        except t2e.ParityError as unbounded:  # no bound lets an answer pass that is not finite
            found["engine"] = _figures(unbounded.report)
            on_cpu = {key: value.cpu() for key, value in inputs.items()}
            model, inputs = copy.deepcopy(model).cpu(), on_cpu
            module = _deployed(model, inputs, precision, "cpu", UNBOUNDED)
    assert module.report is not None
    for stage, report in zip(_stages(module.report.parity), module.report.parity, strict=True):
        found[stage] = _figures(report)
    found["float64"] = _errors_against_float64(model, module, inputs)
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def _deployed(
    model: nn.Module, inputs: dict[str, torch.Tensor], precision: str, device: str, tolerance: Tolerance | None
) -> t2e.TRTModule | t2e.ORTModule:
    axes = {key: {0: BATCH} for key in inputs}
    runtime = "onnxruntime" if device == "cpu" else "tensorrt"
    return t2e.deploy(model, inputs, axes, precision=precision, runtime=runtime, tolerance=tolerance, cache=False)


def _stages(reports: tuple[ParityReport, ...]) -> list[str]:
    """Name the comparisons: the first is that of the exported model, the last that of the engine."""
    names = ["onnxruntime"]
    for report in reports[1:]:
        names.append("strict" if "rounding after" in report.subject else "lowered")
    if not reports[-1].subject.endswith(("ONNX Runtime", "every operator")):
        names[-1] = "engine"
    return names


def _figures(report: ParityReport) -> dict[str, Any]:
    """The largest error, and the largest in units of the sensitivity."""
    rows = report.rows
    ratios = [ratio for row in rows if (ratio := _ratio(row)) is not None]
    return {
        "error": max((row.rel_l2 for row in rows if math.isfinite(row.rel_l2)), default=0.0),
        "sensitivity": max((row.sensitivity for row in rows if math.isfinite(row.sensitivity)), default=0.0),
        "allowed": max((row.allowed for row in rows if math.isfinite(row.allowed)), default=0.0),
        "error_over_sensitivity": max(ratios, default=0.0),
        "nonfinite": sum(max(row.nonfinite_candidate - row.nonfinite_reference, 0) for row in rows),
        "max_rel": max((row.max_rel for row in rows if math.isfinite(row.max_rel)), default=0.0),
    }


def _ratio(row: OutputParity) -> float | None:
    is_measured = row.sensitivity > 0 and math.isfinite(row.sensitivity) and math.isfinite(row.rel_l2)
    return row.rel_l2 / row.sensitivity if is_measured else None


def _errors_against_float64(
    model: nn.Module, module: Callable[..., Any], inputs: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """How far the model itself and the deployed module are from the model in float64."""
    try:
        exact = _float64(model)(**_widened(inputs))
    except RuntimeError as error:  # some models make float32 tensors themselves
        return {"reason": str(error).splitlines()[0][:200]}
    return {"model": _error(exact, model(**inputs)), "deployed": _error(exact, module(**inputs))}


def _error_of_half(model: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """How far PyTorch's own half model is off, which says whether fp16 can hold this model's values at all."""
    half_inputs = {key: value.half() if value.is_floating_point() else value for key, value in inputs.items()}
    return _error(model(**inputs).double(), copy.deepcopy(model).half()(**half_inputs))


def _float64(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def _widened(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


def _error(exact: torch.Tensor, answer: torch.Tensor) -> float:
    size = float(exact.norm())
    return float((answer.double() - exact).norm()) / size if size else 0.0


def call_often(name: str) -> dict[str, float]:
    """Call a float32 engine at several shapes in turn; the largest relative L2 error against float64."""
    from benchmarks.zoo import FLOATS

    torch.manual_seed(0)
    entry = FLOATS[name]
    model = entry.make()
    module = t2e.deploy(model, entry.inputs(4), entry.axes(), cache=False)
    exact_model = _float64(model)
    calls = {batch: entry.inputs(batch) for batch in SHAPES}
    exact = {batch: exact_model(**_widened(inputs)) for batch, inputs in calls.items()}
    worst = 0.0
    for number in range(CALLS):
        batch = SHAPES[number % len(SHAPES)]
        worst = max(worst, _error(exact[batch], module(**calls[batch])))
    return {"worst": worst}


def main() -> None:
    import json

    made = parser(__doc__)
    steps = made.add_subparsers(dest="step", required=True)
    one = steps.add_parser("deploy")
    one.add_argument("model")
    one.add_argument("device")
    one.add_argument("precisions", nargs="+")
    one = steps.add_parser("calls")
    one.add_argument("model")
    options = made.parse_args()
    keep_to(options.cores)
    with torch.no_grad():
        if options.step == "deploy":
            answer = deploy_all(options.model, options.device, options.precisions)
        else:
            answer = call_often(options.model)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
