"""The straight road: module → signature → ONNX → checked → engine → checked, each step one call.

Enters: a live module and a sample. Leaves: a module in its place, proved equal. A room of its own because only here are
the stages composed; none of them knows another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch2engine.artifact.cache import Cache, resolve_cache
from torch2engine.builder.engine_request import request_engine
from torch2engine.capture.parity_cases import make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import BuildConfig, Precision, RuntimeConfig, Tolerance
from torch2engine.core.progress import Progress
from torch2engine.core.spec import Preprocess
from torch2engine.exporter.export import export_onnx
from torch2engine.modules.judge import judge
from torch2engine.modules.onnxruntime.module import ORTModule
from torch2engine.modules.trt.module import TRTModule
from torch2engine.pipeline.engine_reuse import Recall
from torch2engine.pipeline.report import Phases
from torch2engine.pipeline.stages import choose_runtime, prove_split, target_device
from torch2engine.precision.lower import lower
from torch2engine.precision.validate import remaining_precision, validated_precision
from torch2engine.precision.verify import verify_engine_precision
from torch2engine.trt.library import find_tensorrt

__all__ = ["deploy"]


def deploy(
    model: nn.Module,
    sample_input: Any,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    precision: str | Precision = "fp32",
    calibration: Iterable[Any] | None = None,
    profiles: Sequence[Any] | None = None,
    tolerance: Tolerance | None = None,
    runtime: str = "tensorrt",
    config: BuildConfig = BuildConfig(),
    runtime_config: RuntimeConfig = RuntimeConfig(),
    cache: Cache = True,
    cache_key: str | None = None,
    progress: Progress = None,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
) -> TRTModule | ORTModule:
    """Turn a live module into an engine that is called like it and was checked against it.

    Args:
        model: any nn.Module, in training or not, on the CPU or a GPU; it is left exactly as it was. It is deployed in
            inference mode and without autocast, in its own dtypes (a `model.half()` becomes a half engine).
        sample_input: a Tensor; a tuple or list of positional arguments; a Mapping of keyword arguments; or
            `Inputs(*args, **kwargs)`. Any pytree; Python numbers and strings in it become constants.
        dynamic_axes: as in torch.onnx.export: ``{"x": {0: "batch"}}`` or ``{"x": [0]}``; a value may be an `Axis`. A
            bare name ranges from 1 to the sample's size. Axes of one name are one symbol.
        precision: "fp32" (TF32 off) or "tf32", for float32 convolutions and matrix products on the GPU. "fp16", "bf16",
            "int8" and "fp8" change the graph of a float32 model (inputs and outputs keep their dtypes) and need the
            extra `quantize`; a `Precision` says more.
        calibration: inputs in the form of sample_input, for those four: they show how large values become. Read once,
            one at a time. By default the sample at min, opt and max.
        profiles: several ``{"batch": (min, opt, max)}``, of which the narrowest that holds a call's sizes answers it;
            by default one, from the axes.
        tolerance: when the engine counts as equal; by default `Tolerance.default` of the lowest precision involved.
        runtime: "tensorrt", "onnxruntime" (the same graph on the CPU), or "auto" (TensorRT where it can run, else
            ONNX Runtime with one warning).
        config: how TensorRT builds.
        runtime_config: how the deployed module answers. Under out_of_range="eager" it keeps `model`; under "split" it
            is proved now that an axis can be split. ONNX Runtime has out_of_range only.
        cache: True keeps the engine in the user's cache folder and takes it from there when the same one is wanted
            again: the model is exported, and if that gives the same graph the engine is compared with the model once
            more and nothing else is done. A folder or an `EngineCache` for another place; False for none.
        cache_key: a text of your own, with which not even the export is made: your promise that the model's code is the
            same, and calibration data are. Weights and everything else that is passed here are looked at all the same
            (a refittable engine gets the model's own), and the engine is compared with the model.
        progress: True for a bar on the terminal, or a callable given (phase, step, steps, seconds), as `build` says; it
            is told of calibration and of building.
        preprocess: makes normalisation and layout part of the engine, which then takes images as bytes: `sample_input`,
            `dynamic_axes`, `calibration` and calls are uint8, in the layout that it names, and the reference is `model`
            behind the same arithmetic in PyTorch. A `Preprocess` for the only input, else {input: Preprocess}.

    Returns:
        a TRTModule on the sample's GPU (for a CPU sample, PyTorch's current one), or an ORTModule; `report` has the
        parity tables and the seconds of each phase.

    Raises:
        InputError, DynamicAxisError: the sample, the axes or an option can't be had; lists what can.
        InstallationError: no usable TensorRT or GPU, and runtime is "tensorrt".
        ExportError, UnsupportedOperatorError: PyTorch can't express the model in ONNX, or TensorRT not build it.
        BuildError: TensorRT failed.
        PrecisionError: nothing would compute in the precision that was asked, or TensorRT computes more than a tenth
            of what the graph has in it otherwise.
        ParityError: ONNX Runtime or the engine does not answer like the model, or not in the precision that was asked,
            or not in chunks like in the whole although out_of_range is "split"; carries the table.
    """
    asked = validated_precision(precision, calibration, tolerance, config, runtime_config)
    store = resolve_cache(cache, cache_key)
    runtime, model, phases = choose_runtime(runtime, config, runtime_config), unwrap(model), Phases()
    known = store if runtime == "tensorrt" else None
    recall = Recall(known, model, asked, tolerance, config, runtime_config, calibration is not None, phases)
    with undisturbed(model):
        with phases("capture"):
            captured = capture_call(model, sample_input, dynamic_axes, profiles, preprocess)
        if (module := recall.by_key(cache_key, captured)) is not None:
            return module
        with phases("export"):
            artifact = recall.exported(export_onnx(captured, config.refittable))  # torch.onnx.export
        with phases("reference"):
            examples, notes = make_parity_cases(captured)
        if (module := recall.by_graph(artifact, captured, (examples, notes))) is not None:
            return module
    with phases("check"):
        module = ORTModule(artifact, None, runtime_config.on_cpu(), recall.kept)  # onnxruntime.InferenceSession
        checked = judge(module, examples, tolerance, notes).raise_if_failed()
    asked = remaining_precision(asked, artifact)
    with phases("precision", when=asked.changes_graph):
        flavour = None if runtime == "onnxruntime" else find_tensorrt(config.flavour).name
        lowered = lower(artifact, asked, examples, calibration, tolerance=tolerance, flavour=flavour, progress=progress)
    reports, notes = [checked, *lowered.reports], (*captured.notes, *lowered.notes)
    if runtime == "onnxruntime":
        module = lowered.attach_model(ORTModule(lowered.artifact, None, runtime_config.on_cpu(), recall.kept), model)
        notes = (*notes, *prove_split(module, lowered.parity_cases, tolerance))
        module.report = phases.report(reports, module.precision, notes, lowering=lowered.outcome)
        return module
    target, float32 = target_device(captured), "tf32" if asked.dtype == "tf32" else None
    with request_engine(
        lowered.artifact, None, float32, config=config, cache=store, progress=progress, accepts_other_weights=True
    ) as wanted:
        with phases("build"), torch.cuda.device(target):  # build_serialized_network
            torch.cuda.empty_cache()  # the builder is another process and needs the memory
            engine = wanted.load_or_build()
        with phases("parity"):
            module = lowered.attach_model(
                TRTModule(engine, None, None, runtime_config, recall.kept).bind(target), model
            )
            reports.append(judge(module, lowered.parity_cases, lowered.tolerance).raise_if_failed())
            computed = verify_engine_precision(module, lowered.artifact.precision, lowered.parity_cases)
            notes = (
                *notes,
                *lowered.check_metric(module),
                *prove_split(module, lowered.parity_cases, tolerance),
                *computed.notes,
            )
            notes = (*notes, *wanted.notes)
        recall.keep(wanted, module, engine, lowered.outcome, computed.report, (*lowered.notes, *computed.notes))
    module.report = phases.report(
        reports, module.precision, notes, module.memory_bytes, lowered.outcome, computed.report
    )
    module.trim()  # the memory of the largest shapes; those that come may be smaller
    return module
