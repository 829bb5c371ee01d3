"""The arguments of one deploy(), checked before any work is done.

Enters: arguments as the user gave them. Leaves: a `DeployRequest`, or an error that says what is allowed. Separate
because every later step reads the same checked values.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from torch2engine.builder.load_or_build import EarlyBuilder, early_builder
from torch2engine.capture.captured_call import CapturedCall
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
from torch2engine.deployed.trt.trt_backend import require_cuda
from torch2engine.precision.validate import require_lowering_tools, validated_precision
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

    def sensitivity_precisions(self, captured: CapturedCall) -> tuple[str, ...]:
        """The precisions in which candidates will compute: the model's own, and the lowest that is requested.

        A half model stays one under "fp32" and "tf32", which say how float32 is computed.
        """
        stays_low = captured.precision in CAST_PRECISIONS and not self.precision.changes_graph
        return (captured.precision,) if stays_low else (captured.precision, self.precision.lowest_type)

    def start_early_builder(self) -> AbstractContextManager[EarlyBuilder]:
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
