"""A deployed module, or the model before it → what each of its torch modules computes in, and what low types cost it.

Enters: what deploy() gave or what it is given. Leaves: tables. Above the stages because it asks several of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import nn

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import LOW_PRECISIONS, Precision
from torch2engine.core.errors import ArtifactError, InputError, PrecisionError
from torch2engine.core.spec import Preprocess
from torch2engine.exporter.export import export_onnx
from torch2engine.modules.deployed import DeployedModule
from torch2engine.modules.made_inputs import zeros
from torch2engine.modules.trt.module import TRTModule
from torch2engine.precision.calibration import arrays, check_calibration, tensors
from torch2engine.precision.graph.layers import computed_in, read_layers
from torch2engine.precision.graph.macs import products
from torch2engine.precision.graph.ranges import absolute_maxima
from torch2engine.precision.graph.sensitivity import Mixtures
from torch2engine.precision.graph.shares import UNKNOWN, PrecisionReport, Product, table

__all__ = ["PrecisionReport", "Sensitivity", "precision_report", "sensitivity", "verified"]

# What of a low graph's multiply-adds the engine must do in the low type. TensorRT-RTX 1.6 has no fp8 kernel for some
# convolutions (ResNet-50's first, ConvNeXt's depthwise ones) and quietly computes them in float32: mostly a small part
# of a network, and where it is not the user is to say that they may stay so.
_TAKEN = 0.9


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
        return "\n".join(table([*cells, *([name or "(model)", f"{error:.2e}"] for name, error in self.errors.items())]))


def precision_report(deployed: DeployedModule[Any] | OnnxArtifact | EngineArtifact) -> PrecisionReport:
    """Tell what each module's products are computed in.

    Args:
        deployed: what deploy() or load() gave, or an artifact. A TRTModule is bound to its GPU and asked for its
            engine's layers; of anything else the graph is read.

    Raises:
        InputError: anything else.
        ArtifactError: an engine that was saved without its ONNX.
        DeviceError, InstallationError: a TRTModule without its GPU.
    """
    artifact: Any = deployed
    if isinstance(deployed, DeployedModule):
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
            fix="ask the module that deploy() gave, or load the folder that its save_model() wrote",
        )
    profiles = artifact.profiles
    opt = None if not profiles else [profiles[0].sizes(1)]
    inputs = next(iter(zeros(artifact.signature, profiles, opt, torch.device("cpu"))))
    return _report(deployed, path, arrays(artifact.signature, inputs))


def _report(deployed: object, path: Path, inputs: Mapping[str, NDArray[Any]]) -> PrecisionReport:
    found = products(path, inputs)
    if not isinstance(deployed, TRTModule):
        return PrecisionReport(found)
    layers = read_layers(deployed.layers())
    engine = computed_in(layers, found)
    counted = Counter(layer.precision for layer in layers if layer.precision)
    return PrecisionReport(tuple(replace(one, engine=engine[one.name]) for one in found), dict(sorted(counted.items())))


def verified(
    module: TRTModule, asked: str, examples: Sequence[ParityCase]
) -> tuple[PrecisionReport | None, tuple[str, ...]]:
    """Make sure that an engine computes in the low type what its graph has in it.

    Args:
        module: the engine, with its ONNX.
        asked: the graph's precision, whatever the engine is called.
        examples: from `make_parity_cases`; multiply-adds are counted at the sizes of the one at opt.

    Returns:
        the report, None for a graph in float32; and what the user should know.

    Raises:
        PrecisionError: as `check_taken`.
    """
    path = module._artifact.onnx_path  # pyright: ignore[reportPrivateUsage]  # kin of it
    if asked not in LOW_PRECISIONS or path is None:
        return None, ()
    example = next((one for one in examples if one.name.endswith("opt")), examples[0])
    report = _report(module, path, arrays(module.signature, example.inputs))
    return report, check_taken(report, asked, module.runtime)


def check_taken(report: PrecisionReport, word: str, runtime: str) -> tuple[str, ...]:
    """Hold what an engine computes in against its graph.

    Args:
        report: of an engine.
        word: the low precision that was asked.
        runtime: whose engine it is, for the messages.

    Returns:
        what the user should know: products that are not computed in it, or of which TensorRT does not tell.

    Raises:
        PrecisionError: they are more than a tenth of the multiply-adds that the graph has in this precision, or
            TensorRT tells of none of them and has no layer in it.
    """
    asked = [one for one in report.products if one.precision == word]
    if not asked:
        return (f"there is no convolution or matrix product in {word} outside of branches and loops to verify",)
    lost = [one for one in asked if one.engine not in (word, UNKNOWN)]
    unknown = [one for one in asked if one.engine == UNKNOWN]
    if not lost and not unknown:
        return ()
    work = sum(one.multiply_adds for one in asked) or 1
    away, untold = (sum(one.multiply_adds for one in some) / work for some in (lost, unknown))
    told = (
        f"{runtime} computes {100 * (1 - away - untold):.1f} % of the multiply-adds that the graph has in {word} in it"
    )
    told += f", not {_named(lost)}" if lost else ""
    told += f"; it does not tell of {_named(unknown)}" if unknown else ""
    nothing = len(unknown) == len(asked) and bool(report.layers) and word not in report.layers
    if away <= 1 - _TAKEN and not nothing:
        return (told,)
    modules = sorted({one.module for one in lost})
    raise PrecisionError(
        f"precision '{word}'",
        got=told,
        allowed=f"at least {100 * _TAKEN:.0f} %",
        fix=f"take Precision('{word}', keep_fp32={modules}) if these may stay as they are, or another precision",
    )


def _named(products: Sequence[Product]) -> str:
    """The modules, each with what it is computed in; those with the most work first."""
    work: dict[str, int] = {}
    for one in products:
        told = (f"'{one.module}'" if one.module else "(model)") + (
            "" if one.engine == UNKNOWN else f" (in {one.engine})"
        )
        work[told] = work.get(told, 0) + one.multiply_adds
    names = sorted(work, key=lambda told: -work[told])
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def sensitivity(
    model: nn.Module,
    sample_input: Any,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    precision: str | Precision = "fp16",
    calibration: Iterable[Any] | None = None,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
) -> Sensitivity:
    """Find out which modules a low precision harms, each alone, on the CPU.

    Args:
        model, sample_input, dynamic_axes, preprocess: as for `deploy`.
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
        captured = capture_call(model, sample_input, dynamic_axes, None, preprocess)
        artifact = export_onnx(captured)
        examples, _ = make_parity_cases(captured)
    signature = artifact.signature
    batches = [arrays(signature, tensors(signature, batch)) for batch in calibration or ()]
    real = [example for example in examples if not example.name.endswith("random")]
    batches = batches or [arrays(signature, example.inputs) for example in real]
    maxima = absolute_maxima(artifact.onnx_path, batches)
    with Mixtures(artifact.onnx_path, asked.dtype, (), maxima) as mixtures:
        return Sensitivity(asked.dtype, mixtures.errors(batches))
