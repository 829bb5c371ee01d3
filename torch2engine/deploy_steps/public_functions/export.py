"""A live module → `OnnxArtifact`: the public step `export`.

Enters: a module and a sample. Leaves: its ONNX model, in a low precision if one was requested. Separate because
`export` is a step of its own for users, and composes the same stages as `deploy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.live_parameters import find_live_parameters
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import BuildConfig, Mutations, Precision, Profiles, RuntimeConfig
from torch2engine.core.precisions import PrecisionName
from torch2engine.core.spec import Preprocess
from torch2engine.deploy_steps.reference_answers import answer_parity_cases
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.exporter.export_onnx import export_onnx
from torch2engine.precision.lower import lower
from torch2engine.precision.validate import (
    checked_calibration,
    needed_lowering,
    require_lowering_tools,
    require_precision_of_live_parameters,
    validated_precision,
)

__all__ = ["export"]

_BUILT_BY = "tensorrt"  # a low precision is written for an engine; its flavour is not known yet


def export(
    model: nn.Module,
    sample_input: Any,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    precision: PrecisionName | Precision = "fp32",
    calibration: Iterable[Any] | None = None,
    profiles: Profiles | None = None,
    refittable: bool = False,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
    mutations: Mutations = "refuse",
    live_parameters: Sequence[str] = (),
) -> OnnxArtifact:
    """Export a module to ONNX, without building it.

    In float32 the model is not checked: see `check`. A low precision is compared with the model on the CPU, as in
    `deploy`. So an engine can be built from the artifact on a machine without a GPU.

    Args:
        model, sample_input, dynamic_axes, precision, calibration, profiles, preprocess: as for `deploy`; "tf32" is left
            to `build`.
        refittable: record how the ONNX graph's weights follow from the module's, for BuildConfig(refittable=True).
        mutations: what becomes of a model that writes into its inputs, as `BuildConfig` says.
        live_parameters: parameters and buffers that become inputs, as for `deploy`.

    Returns:
        the artifact; its `save` writes it to a folder, `torch2engine.build` builds an engine from it, in its precision.

    Raises:
        InputError, DynamicAxisError, ExportError, UnsupportedOperatorError: as `deploy` does.
        InstallationError, PrecisionError, ParityError: the low precision is not possible, or answers differently.

    >>> artifact = t2e.export(model, sample, axes)
    >>> artifact.signature.outputs[0].shape
    ('batch', 10)
    """
    options = BuildConfig(refittable=refittable, mutations=mutations)
    calibration = checked_calibration(calibration)
    requested = validated_precision(precision, calibration, None, options, RuntimeConfig())
    model = unwrap(model)
    require_lowering_tools(requested, model)
    live = find_live_parameters(model, live_parameters)
    require_precision_of_live_parameters(requested, live)
    with undisturbed(model):
        captured = capture_call(
            model,
            sample_input,
            dynamic_axes,
            profiles,
            preprocess,
            mutations=options.mutations,
            live_parameters=live,
        )
        artifact = export_onnx(captured, refittable)
        lowering = needed_lowering(requested, artifact)
        if not lowering.changes_graph:
            return artifact
        captured = captured.with_axes_and_profiles_of(artifact)
        answers = answer_parity_cases(captured, sensitivity_precisions=(captured.precision, requested.lowest_type))
    answers.compare(ORTModule(artifact), tolerance=None).raise_if_failed()
    return lower(artifact, lowering, answers.parity_cases, calibration, flavour=_BUILT_BY).artifact
