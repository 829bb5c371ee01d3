"""A deployed module, or the model before it → what each of its torch modules computes in, and what low types cost it.

Enters: what deploy() gave or what it is given. Leaves: tables. Above the stages because it asks several of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from torch2engine._calibration import arrays, check_calibration, tensors
from torch2engine._prepare import zeros
from torch2engine.artifact import EngineArtifact, OnnxArtifact
from torch2engine.capture import capture
from torch2engine.cases import cases
from torch2engine.config import LOW_PRECISIONS, Precision
from torch2engine.deployed import Deployed
from torch2engine.errors import ArtifactError, InputError
from torch2engine.export import export_onnx
from torch2engine.precision.macs import Product, products
from torch2engine.precision.ranges import absolute_maxima
from torch2engine.precision.sensitivity import Mixtures
from torch2engine.preserve import undisturbed
from torch2engine.reference import unwrap

__all__ = ["PrecisionReport", "Sensitivity", "precision_report", "sensitivity"]


@dataclass(frozen=True)
class PrecisionReport:
    """What the products of a model (convolutions, matrix products, recurrent layers) are computed in.

    It tells of the graph that TensorRT builds from, at the opt sizes of the first profile. Printed, it is a table.

    Args:
        products: one for each such node, in the graph's order.
    """

    products: tuple[Product, ...]

    def share(self, precision: str) -> float:
        """Share of the multiply-adds in "fp32", "fp16", "bf16", "int8" or "fp8"; 0 for a model without any."""
        total = sum(product.multiply_adds for product in self.products)
        return sum(one.multiply_adds for one in self.products if one.precision == precision) / total if total else 0.0

    def __str__(self) -> str:
        rows: dict[tuple[str, str], list[int]] = {}
        for one in self.products:
            row = rows.setdefault((one.module, one.precision), [0, 0])
            row[0] += 1
            row[1] += one.multiply_adds
        cells = [["module", "precision", "products", "multiply-adds"]]
        cells += [[module or "(model)", word, str(n), f"{macs:,}"] for (module, word), (n, macs) in rows.items()]
        words = dict.fromkeys(one.precision for one in self.products)
        title = ", ".join(f"{100 * self.share(word):.1f} % of the multiply-adds in {word}" for word in words)
        return "\n".join([title or "no products", *_table(cells)])

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        words = sorted({one.precision for one in self.products})
        return {
            "shares": {word: self.share(word) for word in words},
            "products": [vars(one) for one in self.products],
        }


@dataclass(frozen=True)
class Sensitivity:
    """What it costs to compute one module alone in a low type. Printed, it is a table, the worst first.

    Args:
        precision: the type.
        errors: module path -> relative L2 error of the model's outputs, the largest over outputs and batches; inf where
            an output is not finite.
    """

    precision: str
    errors: Mapping[str, float]

    def __str__(self) -> str:
        cells = [["module", f"error if it alone is {self.precision}"]]
        return "\n".join(
            _table([*cells, *([name or "(model)", f"{error:.2e}"] for name, error in self.errors.items())])
        )


def precision_report(deployed: Deployed[Any] | OnnxArtifact | EngineArtifact) -> PrecisionReport:
    """Tell what each module's products are computed in.

    Args:
        deployed: what deploy() or load() gave, or an artifact.

    Raises:
        InputError: anything else.
        ArtifactError: an engine that was saved without its ONNX.
    """
    artifact: Any = deployed
    if isinstance(deployed, Deployed):
        artifact = deployed._artifact  # pyright: ignore[reportPrivateUsage]  # kin of it
    if not isinstance(cast("object", artifact), (OnnxArtifact, EngineArtifact)):
        raise InputError(
            "precision_report",
            got=f"a {type(deployed).__name__}",
            allowed="a deployed module or an artifact",
            fix="deploy the model first",
        )
    path = artifact.onnx_path
    if path is None:
        raise ArtifactError(
            "precision_report",
            got="the engine has no ONNX beside it",
            allowed="a plan alone does not say which module a layer comes from",
            fix="ask the module that deploy() gave, or load the folder that its save() wrote",
        )
    profiles = artifact.profiles
    opt = None if not profiles else [profiles[0].sizes(1)]
    inputs = next(iter(zeros(artifact.signature, profiles, opt, torch.device("cpu"))))
    return PrecisionReport(products(path, arrays(artifact.signature, inputs)))


def sensitivity(
    model: nn.Module,
    sample_input: Any,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    precision: str | Precision = "fp16",
    calibration: Iterable[Any] | None = None,
) -> Sensitivity:
    """Find out which modules a low precision harms, each alone, on the CPU.

    Args:
        model, sample_input, dynamic_axes: as for `deploy`.
        precision: "fp16", "bf16", "int8" or "fp8"; of a `Precision` its dtype counts. 8-bit types are tried with one
            scale for each tensor, which is enough to compare modules by.
        calibration: the inputs to measure on, in the form of sample_input; the sample by default.

    Raises:
        InputError, DynamicAxisError, ExportError, UnsupportedOperatorError: as `deploy`.
    """
    asked = Precision.of(precision)
    if asked.dtype not in LOW_PRECISIONS:
        raise InputError("precision", got=repr(asked.dtype), allowed="one of " + ", ".join(map(repr, LOW_PRECISIONS)))
    check_calibration(asked, calibration)
    model = unwrap(model)
    with undisturbed(model):
        captured = capture(model, sample_input, dynamic_axes)
        artifact = export_onnx(captured)
        examples, _ = cases(captured)
    signature = artifact.signature
    batches = [arrays(signature, tensors(signature, batch)) for batch in calibration or ()]
    real = [example for example in examples if not example.name.endswith("random")]
    batches = batches or [arrays(signature, example.inputs) for example in real]
    maxima = absolute_maxima(artifact.onnx_path, batches)
    with Mixtures(artifact.onnx_path, asked.dtype, (), maxima) as mixtures:
        return Sensitivity(asked.dtype, mixtures.errors(batches))


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
