"""A live model → the loss of accuracy if one of its modules alone is in a low precision.

Enters: what deploy() takes. Leaves: errors by module. Separate because it needs no deployed module: it composes
capture, export and measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from torch2engine.capture.parity_cases import make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import Precision, require_choice
from torch2engine.core.precision_report import table
from torch2engine.core.precisions import LOW_PRECISIONS, PrecisionName
from torch2engine.core.spec import Preprocess
from torch2engine.exporter.export_onnx import export_onnx
from torch2engine.precision.calibration import batch_tensors, check_calibration, named_arrays
from torch2engine.precision.graph.mixed_precision import MixedPrecisionModel
from torch2engine.precision.graph.tensor_maxima import absolute_maxima

__all__ = ["Sensitivity", "sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """The loss of accuracy if one module alone is in a low type. Printed, it is a table, the worst first.

    Args:
        precision: the type.
        errors: module path -> relative L2 error of the model's outputs, the largest over outputs and batches; inf where
            an output is not finite.
    """

    precision: str
    errors: Mapping[str, float]

    def __str__(self) -> str:
        head = ["module", f"error if it alone is {self.precision}"]
        rows = [[module or "(model)", f"{error:.2e}"] for module, error in self.errors.items()]
        return "\n".join(table([head, *rows]))


def sensitivity(
    model: nn.Module,
    sample_input: Any,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    precision: PrecisionName | Precision = "fp16",
    calibration: Iterable[Any] | None = None,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
) -> Sensitivity:
    """Measure how much each module alone loses in a low precision, on the CPU.

    Args:
        model, sample_input, dynamic_axes, preprocess: as for `deploy`.
        precision: "fp16", "bf16", "int8" or "fp8"; of a `Precision` its dtype counts. 8-bit types are tried with one
            scale for each tensor, which is enough to compare modules by.
        calibration: the inputs to measure on, in the form of sample_input; the sample by default.

    Raises:
        InputError, DynamicAxisError, ExportError, UnsupportedOperatorError: as `deploy`.

    >>> measured = t2e.sensitivity(model, sample, precision="fp16")
    >>> sorted(measured.errors)
    ['', 'conv', 'head']
    """
    low_precision = Precision.of(precision)
    dtype = low_precision.dtype
    require_choice("precision", dtype, LOW_PRECISIONS)
    check_calibration(low_precision, calibration)
    model = unwrap(model)
    with undisturbed(model):
        captured = capture_call(model, sample_input, dynamic_axes, None, preprocess, mutations="write_back")
        artifact = export_onnx(captured)
        cases, _ = make_parity_cases(captured)
    signature = artifact.signature
    batches = [named_arrays(signature, batch_tensors(signature, batch)) for batch in calibration or ()]
    if not batches:
        batches = [named_arrays(signature, case.inputs) for case in cases if case.kind != "random"]
    maxima = absolute_maxima(artifact.checked_onnx_path, batches)
    with MixedPrecisionModel(artifact.checked_onnx_path, dtype, (), maxima) as mixed_model:
        return Sensitivity(dtype, mixed_model.module_errors(batches))
