"""The arguments of one deploy(), checked before any work is done.

Enters: arguments as the user gave them. Leaves: a `DeployRequest`, or an error that says what is allowed. Separate
because every later step reads the same checked values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.load_or_build import EarlyBuilder, early_builder
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.live_parameters import find_live_parameters
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.signature import capture_call
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import (
    DEPLOY_RUNTIMES,
    BuildConfig,
    Precision,
    RuntimeConfig,
    Tolerances,
    require_choice,
)
from torch2engine.core.errors import InstallationError
from torch2engine.core.precisions import CAST_PRECISIONS
from torch2engine.core.user_warning import warn_user
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deployed.live_tensors import require_free_names
from torch2engine.deployed.trt.trt_backend import require_cuda
from torch2engine.parity.tolerance_bounds import Bounds
from torch2engine.precision.lower import lower
from torch2engine.precision.lowered_model import LoweredModel
from torch2engine.precision.validate import (
    needed_lowering,
    require_lowering_tools,
    require_precision_of_live_parameters,
    validated_precision,
)
from torch2engine.trt.bindings import find_tensorrt
from torch2engine.trt.gpu import require_gpu

__all__ = ["DeployRequest", "choose_runtime"]


@dataclass(frozen=True, kw_only=True)
class DeployRequest:
    """The checked arguments of one deploy().

    Args:
        model: the user's module, below torch's wrappers.
        given: the model and the sample as the user gave them; the sample is checked when the call is captured.
        precision: the requested precision.
        has_calibration: whether calibration data were given; nothing has read them yet.
        tolerance: the requested tolerance; None for the precision's default.
        runtime: "tensorrt" or "onnxruntime".
        config: how TensorRT builds.
        runtime_config: how the deployed module answers.
    """

    model: nn.Module
    given: ModelAndSample
    precision: Precision
    has_calibration: bool
    tolerance: Tolerances | None
    runtime: str
    config: BuildConfig
    runtime_config: RuntimeConfig

    @classmethod
    def from_arguments(
        cls,
        given: ModelAndSample,
        precision: str | Precision,
        calibration: Iterable[Any] | None,
        tolerance: Tolerances | None,
        runtime: str,
        config: BuildConfig,
        runtime_config: RuntimeConfig,
    ) -> DeployRequest:
        """Check the arguments of deploy(), unwrap the model, and choose the runtime.

        Raises:
            InputError: an argument, or a combination of them, that is not allowed.
            InstallationError: runtime is "tensorrt", and it can't run.
        """
        checked_precision = validated_precision(precision, calibration, tolerance, config, runtime_config)
        chosen_runtime = choose_runtime(runtime, config, runtime_config)
        module = unwrap(given.model)
        require_lowering_tools(checked_precision, module)
        return cls(
            model=module,
            given=given,
            precision=checked_precision,
            has_calibration=calibration is not None,
            tolerance=tolerance,
            runtime=chosen_runtime,
            config=config,
            runtime_config=runtime_config,
        )

    def capture(self) -> CapturedCall:
        """Run the model on the sample, and capture the call; run it inside `undisturbed`.

        All arguments that name inputs, outputs, axes, parameters or buffers of the model are checked here.

        Raises:
            InputError, DynamicAxisError, ExportError: as `capture_call`.
            InputError: also for a tolerance of an output that the model does not have, and for live parameters that
                there are not, or that can't be live.
        """
        live = find_live_parameters(self.model, self.given.live_parameters)
        require_precision_of_live_parameters(self.precision, live)
        require_free_names(live)
        captured = capture_call(
            self.model,
            self.given.sample_input,
            self.given.dynamic_axes,
            self.given.profiles,
            self.given.preprocess,
            self.given.examples,
            self.config.mutations,
            live,
        )
        names = [spec.name for spec in captured.signature.outputs]
        Bounds.of(self.tolerance, captured.precision).check_names(names)
        return captured

    def lower_if_needed(
        self,
        artifact: OnnxArtifact,
        parity_cases: Sequence[ParityCase],
        calibration: Iterable[Any] | None,
        report: ReportBuilder,
    ) -> LoweredModel:
        """Lower an exported graph if it needs that, and compare it with the model again, on ONNX Runtime.

        Args:
            artifact: the exported model; it stays as it is where `needed_lowering` gives a precision of float32.
            parity_cases, calibration: as for `torch2engine.precision.lower.lower`.
            report: takes the phase "precision", the comparisons, the notes, and which nodes are lowered.

        Raises:
            as `torch2engine.precision.lower.lower`.
        """
        precision = needed_lowering(self.precision, artifact)
        with report.phase("precision", is_reported=precision.changes_graph):
            lowered = lower(
                artifact,
                precision,
                parity_cases,
                calibration,
                tolerance=self.tolerance,
                flavour=self.flavour,
                progress=report.progress,
            )
            report.add_lowering(lowered)
        return lowered

    def sensitivity_precisions(self, captured: CapturedCall) -> tuple[str, ...]:
        """The precisions in which candidates will compute: the model's own, and the lowest that is requested.

        A half model stays one under "fp32" and "tf32", which say how float32 is computed.
        """
        stays_low = captured.precision in CAST_PRECISIONS and not self.precision.changes_graph
        return (captured.precision,) if stays_low else (captured.precision, self.precision.lowest_type)

    def early_builder(self) -> AbstractContextManager[EarlyBuilder]:
        """Start the builder's process before there is a graph; no process where ONNX Runtime answers."""
        if self.runtime == "onnxruntime":
            return nullcontext(EarlyBuilder())
        return early_builder(self.precision.builder_precision, self.config)

    @property
    def flavour(self) -> str | None:
        """The TensorRT that builds: "tensorrt" or "tensorrt_rtx"; None where ONNX Runtime answers."""
        return None if self.runtime == "onnxruntime" else find_tensorrt(self.config.flavour).name

    @property
    def eager_reference(self) -> nn.Module | None:
        """The model where out_of_range is "eager": it then answers calls outside every profile. None otherwise."""
        return self.model if self.runtime_config.out_of_range == "eager" else None


def choose_runtime(runtime: str, config: BuildConfig, runtime_config: RuntimeConfig = RuntimeConfig()) -> str:
    """Choose what "auto" means here, and refuse "tensorrt" where it can't run.

    Returns:
        "tensorrt" or "onnxruntime".

    Raises:
        InputError: an unknown runtime, or options that it does not have.
        InstallationError: "tensorrt" without a usable TensorRT, GPU or CUDA build of PyTorch.
    """
    require_choice("runtime", runtime, DEPLOY_RUNTIMES)
    if runtime == "onnxruntime":
        runtime_config.check_cpu("runtime='onnxruntime'")
        return runtime
    try:
        find_tensorrt(config.flavour)
        require_gpu()
        require_cuda()
    except InstallationError as error:
        if runtime == "tensorrt":
            fix = f"{error.fix}, or deploy with runtime='onnxruntime' to run on the CPU"
            raise InstallationError(error.subject, got=error.got, allowed=error.allowed, fix=fix) from error.__cause__
        ignored = runtime_config.only_gpu()
        without = f" without {ignored}, which it does not have" if ignored else ""
        warn_user(f"deploying to ONNX Runtime on the CPU{without}, because TensorRT can't run: {error}")
        return "onnxruntime"
    return "tensorrt"
