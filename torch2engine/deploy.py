"""All steps from a module to an engine, in order: capture, export, reference, check, precision, build, parity, speed.

Enters: a live module and a sample. Leaves: a deployed module that was compared with it. Separate because this function
is the list of the steps; the folders hold the steps themselves. The report has the seconds of each under these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import nn

from torch2engine.artifact.engine_cache import Cache, resolve_cache
from torch2engine.builder.load_or_build import load_or_build
from torch2engine.capture.recording import Recording
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.config import BuildConfig, DeployRuntime, Precision, Profiles, RuntimeConfig, Tolerances
from torch2engine.core.precisions import PrecisionName
from torch2engine.core.progress import Progress
from torch2engine.core.spec import Preprocess
from torch2engine.deploy_steps.accept import attach_report, make_ort_module, make_verified_trt_module, store_in_cache
from torch2engine.deploy_steps.choice_by_time.fastest import with_fastest
from torch2engine.deploy_steps.choice_by_time.measure_variants import with_measured_variants
from torch2engine.deploy_steps.deploy_options import DeployOptions, Model
from torch2engine.deploy_steps.earlier_engines import EarlierEngines
from torch2engine.deploy_steps.graph_check import GraphCheck
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.reference_answers import answer_parity_cases
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deploy_steps.speed_note import compare_speed
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.exporter.export_onnx import export_onnx
from torch2engine.fallback.deploy_in_parts import with_fallback
from torch2engine.fallback.parts_module import PartsModule
from torch2engine.precision.validate import checked_calibration

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["deploy"]


# The type of the result follows from `runtime` and `fallback`; the docstring below explains all arguments.
@overload
def deploy(
    model: Model | Recording,
    sample_input: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    runtime: Literal["tensorrt"] = "tensorrt",
    fallback: Literal[False] = False,
    **options: Unpack[DeployOptions],
) -> TRTModule[Model]: ...
@overload
def deploy(
    model: Model | Recording,
    sample_input: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    runtime: Literal["onnxruntime"],
    fallback: Literal[False] = False,
    **options: Unpack[DeployOptions],
) -> ORTModule[Model]: ...
@overload
def deploy(
    model: Model | Recording,
    sample_input: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    runtime: Literal["auto"],
    fallback: Literal[False] = False,
    **options: Unpack[DeployOptions],
) -> TRTModule[Model] | ORTModule[Model]: ...
@overload
def deploy(
    model: Model | Recording,
    sample_input: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    runtime: DeployRuntime,
    fallback: Literal[False] = False,
    **options: Unpack[DeployOptions],
) -> DeployedModule[Any, Model]: ...
@overload
def deploy(
    model: Model | Recording,
    sample_input: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    runtime: Literal["tensorrt", "onnxruntime", "auto"] = "tensorrt",
    fallback: bool | Literal["faster"],
    **options: Unpack[DeployOptions],
) -> TRTModule[Model] | ORTModule[Model] | PartsModule: ...
@overload
def deploy(
    model: Model | Recording,
    sample_input: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    runtime: DeployRuntime,
    fallback: bool | Literal["faster"],
    **options: Unpack[DeployOptions],
) -> DeployedModule[Any, Any]: ...


@with_fastest  # if runtime="fastest": times what this function returns beside PyTorch, and returns the faster one
@with_measured_variants  # if optimize="measure": deploys other variants of the engine, too, and returns the fastest
@with_fallback  # if fallback is set: catches UnsupportedOperatorError, and deploys parts of the model by this function
def deploy(
    model: nn.Module | Recording,
    sample_input: Any = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    precision: PrecisionName | Precision = "fp32",
    calibration: Iterable[Any] | None = None,
    profiles: Profiles | None = None,
    examples: Iterable[Any] | None = None,
    tolerance: Tolerances | None = None,
    runtime: DeployRuntime = "tensorrt",
    config: BuildConfig = BuildConfig(),
    runtime_config: RuntimeConfig = RuntimeConfig(),
    cache: Cache = True,
    cache_key: str | None = None,
    progress: Progress = True,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
    live_parameters: Sequence[str] = (),
    fallback: bool | Literal["faster"] = False,
) -> TRTModule[Any] | ORTModule[Any]:
    """Turn a live module into an engine that is called like it and was checked against it.

    Args:
        model: any nn.Module, in training or not, on the CPU or a GPU; it is left exactly as it was. It is deployed as
            after `model.eval()`, without autocast, in its own dtypes (a `model.half()` becomes a half engine). Or a
            `Recording`: then `sample_input`, `dynamic_axes` and `examples` may be left out.
        sample_input: a Tensor; a tuple or list of positional arguments; a Mapping of keyword arguments; or
            `Inputs(*args, **kwargs)`. Any pytree; Python numbers and strings in it become constants.
        dynamic_axes: as in torch.onnx.export: ``{"x": {0: "batch"}}`` or ``{"x": [0]}``; a value may be an `Axis`. A
            bare name ranges from 1 to the sample's size. Axes of one name are one symbol. A size that follows from
            axes of other dimensions is an expression: ``{"mask": {1: "past + new"}}``.
        precision: "fp32" (TF32 off) or "tf32", for float32 convolutions and matrix products on the GPU. "fp16", "bf16",
            "int8" and "fp8" change the graph of a float32 model, whose inputs and outputs keep their dtypes. They need
            the extra `quantize`. A `Precision` has more options.
        calibration: inputs in the form of sample_input, for these four precisions; they show how large values become.
            Read once, one at a time. By default the examples, else the sample at min, opt and max.
        profiles: a list of ``{"batch": (min, opt, max)}``. A call uses the narrowest profile that contains its sizes.
            By default there is one profile, made from the axes. "auto" adds one for the sample's sizes, and
            for those of each example or recorded call; without examples, for the axes' min, opt and max. TensorRT-RTX's
            kernels for a single size are faster.
        examples: real inputs at other sizes, each in the form of sample_input, on any device. The engine is compared on
            them and on the sample, instead of inputs that are invented from the sample. Invented inputs may be invalid
            where integers or masks depend on sizes or on each other. Read once. Notes in the report name the ends of
            the profiles that no example reaches.
        tolerance: when the engine counts as equal. The default is `Tolerance.default` of the lowest precision involved,
            or more where rounding moves the model's own answers more. The report shows this sensitivity. A Mapping has
            one for each output that it names, e.g. {"labels": Tolerance(mismatch=1e-3)}.
        runtime: "tensorrt", "onnxruntime" (the same graph on the CPU), or "auto" (TensorRT where it can run, else
            ONNX Runtime with one warning). "fastest" deploys as "auto" does, then times the engine beside PyTorch: in
            eager and under torch.compile, on a GPU both in CUDA graphs. It returns the fastest over all profiles' opts,
            the engine within 5 %. A PyTorch that wins is a `LiveModule`: it keeps the contract of a call and was
            compared likewise, but uses the model's own weights as they are now, and can't be saved. torch.compile
            begins nothing after `BuildConfig.optimize_seconds`. What fails or answers differently is left out. The
            report has the times and reasons in `tried`.
        config: how TensorRT builds, and what becomes of a model that writes into its inputs.
        runtime_config: how the deployed module answers. Under out_of_range="eager" the module keeps `model`. Under
            "split" deploy proves that an axis can be split. ONNX Runtime has out_of_range only.
        cache: True keeps the engine in the user's cache folder. A later deploy with the same arguments exports the
            model; if the graph is the same, it compares the stored engine with the model and skips all other steps.
            With calibration data it skips only the build. A folder or an `EngineCache` for another place; False for
            none.
        cache_key: a text of your own that lets a later deploy skip the export too. It is your promise that the model's
            code and the calibration data are the same. Weights, whatever else the model's attributes reach, and all
            other arguments are still compared, and so are the answers of engine and model. An attribute that can't be
            compared is named in a warning, and the key is not used. A refittable engine gets the model's own weights.
        progress: True shows a bar where standard error is a terminal, and nothing elsewhere. A callable is given
            (phase, step, steps, seconds), as for `build`: for every phase of the report, and for the steps of
            calibration and building inside. It returns False to cancel. None or False for silence.
        preprocess: makes normalisation and layout part of the engine, which then takes images as bytes. `sample_input`,
            `dynamic_axes`, `calibration` and calls are uint8, in the layout that it names. The reference is `model`
            behind the same arithmetic in PyTorch. A `Preprocess` for the only input, else {input: Preprocess}.
        live_parameters: names of parameters and buffers, with * and ? for any letters, e.g. ``["*.lora_scale"]``. They
            become inputs of the engine, and the deployed module has them as parameters and buffers of its own. Every
            call reads their present values, so a change costs neither a refit nor a build. See
            `DeployedModule.live_parameters`.
        fallback: where operators have no engine, leave them in PyTorch and make engines of what is around them, instead
            of an UnsupportedOperatorError. The parts of such a `PartsModule` have default tolerances; the whole is
            compared by `tolerance`. "faster" also leaves a part to PyTorch where its engine is measured to be slower.

    Returns:
        a TRTModule on the sample's GPU, or an ORTModule. For a CPU sample it is PyTorch's current GPU. With fallback it
        may be a PartsModule, with runtime="fastest" a LiveModule. The module's `report` has the parity tables and the
        seconds of each phase.

    Raises:
        InputError, DynamicAxisError: the sample, the axes or an option is not possible; lists what is.
        InstallationError: no usable TensorRT or GPU, and runtime is "tensorrt".
        ExportError, UnsupportedOperatorError: PyTorch can't express the model in ONNX, or TensorRT not build it.
        BuildError: TensorRT failed, or `progress` cancelled. With fallback="faster": the module takes over 3 % more
            time than the model.
        PrecisionError: nothing would compute in the requested precision. Or TensorRT computes more than a tenth of the
            graph's arithmetic of that precision in another one.
        ParityError: ONNX Runtime or the engine differs from the model by more than the tolerance, before or after the
            precision was lowered. With out_of_range="split": answers in chunks differ from the whole. The error holds
            the table.
        RefitError: a refittable engine does not take the model's weights.

    >>> module = t2e.deploy(model, sample, axes, runtime="onnxruntime")
    >>> module
    ORTModule(x: float32[batch, 3, 64, 64] -> output: float32[batch, 10]; batch 1..32 (opt 8); fp32, device=cpu)
    >>> module(torch.rand(5, 3, 64, 64)).shape
    torch.Size([5, 10])
    """
    # The arguments that describe the model and its calls. A Recording gives the sample and examples that were left out,
    # and axes for inputs that dynamic_axes does not name. Reads `examples`: InputError for unusable ones, or for a
    # Recording without a usable call. All else is checked in request.capture() below.
    given = ModelAndSample.of(model, sample_input, dynamic_axes, profiles, preprocess, examples, live_parameters)
    # Checks precision, the form of calibration, tolerance, runtime, both configs and the model's type (InputError), and
    # that their libraries are installed (InstallationError). The model is not called. `request.runtime` is never
    # "auto": where TensorRT can't run, a warning says so. `request.model` is the module inside DataParallel or
    # torch.compile.
    request = DeployRequest.from_arguments(given, precision, calibration, tolerance, runtime, config, runtime_config)
    # None if caching is off, or for cache=True without a home folder. InputError for a cache or cache_key of no use.
    engine_cache = resolve_cache(cache, cache_key)
    # Collects comparisons, notes and seconds. `phase` times its body and shows progress: BuildError if that cancels.
    report = ReportBuilder(progress)
    earlier_engines = EarlierEngines(request, engine_cache, cache_key, report)  # only stores them; reads no file yet
    with ExitStack() as until_accepted:
        # In this block: eval mode, exact float32. Calls of the model by other threads wait, and so does another
        # thread's deploy. Afterwards model and process are as before. Only values that forward wrote into parameters or
        # gradients can't be undone: ExportError.
        with undisturbed(request.model):
            with report.phase("capture"):
                # Calls the model on the sample, on other values of these sizes, and again, to prove that it keeps no
                # state. Checks sample, axes, profiles, live parameters and the output names in tolerance. InputError,
                # DynamicAxisError, ExportError.
                captured = request.capture()
                report.add_notes(captured.notes)
            # The engine of an earlier deploy with this cache_key, as a module that was compared with the model anew and
            # has its report. None without a cache_key or such an engine, for ONNX Runtime, and for a budget with a
            # metric. Also None, with a warning, if this engine fails or gives other answers. Raises only what no engine
            # is to blame for: InputError, InstallationError, a cancel, full memory, an error of the model on a parity
            # case.
            if (reused_module := earlier_engines.find_by_cache_key(captured)) is not None:
                return reused_module
            # Returns `calibration`, or a chain that gives its first item again. An iterator without any item is an
            # InputError now, before the slow export. The rest is read where the graph is lowered.
            calibration_data = checked_calibration(calibration)
            # Starts a process that loads TensorRT's builder beside the export. It does nothing for ONNX Runtime, and
            # raises nothing: without this process the build starts one. It ends with the outer block.
            builder = until_accepted.enter_context(request.early_builder())
            with report.phase("export"):
                # By torch.onnx.export. DynamicAxisError if the model fixes an axis, UnsupportedOperatorError,
                # ExportError; InputError for a refittable model with quantisers.
                onnx_artifact = export_onnx(captured, refittable=request.config.refittable)
                captured = captured.with_axes_and_profiles_of(onnx_artifact)  # a copy, with axes such as "past + new"
            # The model's answers to all parity cases, and how far rounding moves them, in the model's own precision and
            # in the requested one. ExportError or DynamicAxisError if the model fails on a case. A thread hashes the
            # ONNX files meanwhile, for find_by_graph.
            with report.phase("reference"), earlier_engines.hashing_in_thread(onnx_artifact):
                reference_answers = answer_parity_cases(captured, request.sensitivity_precisions(captured))
            # As find_by_cache_key, but for an engine of the same ONNX graph; it needs no cache_key. Nor does it search
            # if there are calibration data: other data would give another engine.
            if (reused_module := earlier_engines.find_by_graph(onnx_artifact, captured, reference_answers)) is not None:
                return reused_module
        # Only decides in which cases the exported graph is compared with the model. Where an engine follows that will
        # be compared in every case, the graph is not compared on invented inputs that are larger than the smallest opt,
        # or as large as others. Without TensorRT, and for int8 and fp8, it is compared in every case.
        graph_check = GraphCheck.for_request(request, onnx_artifact, reference_answers)
        # Compares the graph, on ONNX Runtime (ParityError). Where the graph is built as it is, and is not large, this
        # only sets `builder.meanwhile`: load_or_build below compares it while the builder's process works.
        graph_check.compare_now_or_during_build(report, builder)
        # The graph in the requested low precision, or in that of the model's own quantisers, compared once more. For
        # "fp32" and "tf32", and for a half model, the graph stays as it is. InputError, PrecisionError, ParityError,
        # UnsupportedOperatorError, ExportError, InstallationError.
        lowered = request.lower_if_needed(onnx_artifact, reference_answers.parity_cases, calibration_data, report)
        if request.runtime == "onnxruntime":
            # The module of the graph that compare_now_or_during_build and lower_if_needed have compared, with its
            # report. It gets the model for refits (RefitError). Axes that may be split are proved (ParityError,
            # InputError).
            return attach_report(make_ort_module(lowered, request, report), report)
        with report.phase("build"), torch.cuda.device(captured.target_gpu):
            torch.cuda.empty_cache()  # TensorRT's builder is another process and needs the memory
            # Loaded from the cache, or built now; store_in_cache alone stores it. Until the outer block ends, processes
            # that need the same new engine wait. If the block fails, an engine that came from the cache is removed from
            # it, except after InputError, InstallationError, a cancel or full memory. BuildError,
            # UnsupportedOperatorError, InstallationError; ParityError of the graph that is compared meanwhile.
            pending_engine = until_accepted.enter_context(
                load_or_build(
                    lowered.artifact, lowered.builder_precision, request.config, engine_cache, report.progress, builder
                )
            )
        # After a ParityError below, the graph is compared in the cases that it was spared. If the graph is wrong there,
        # its error is raised instead of the engine's.
        until_accepted.enter_context(graph_check.naming_the_culprit())
        # A module of the engine. For large engines of TensorRT-RTX, several processes compile the kernels. Gives a
        # refittable engine the model's weights (RefitError). Compares in all cases, a quantised one in all but random
        # ones, and by the metric of a budget (ParityError). Proves axes that may be split (ParityError, InputError),
        # and checks the engine's precisions (PrecisionError).
        trt_module = make_verified_trt_module(pending_engine, lowered, request, captured.target_gpu, report)
        # Stores the engine with its present weights. TensorRT-RTX compiles kernels at run time: they are stored too,
        # but under another kernel_specialization than "none" only those that the engine had when it was loaded. Nothing
        # is stored without a cache, or if the cache has the same ONNX file with kernels for this driver.
        store_in_cache(pending_engine, trt_module, request)
        # Times engine and model at each profile's opt. A note where PyTorch is faster, and why. Nothing under
        # BuildConfig.compare_speed=False, or if they are not on one GPU. Compiles no kernels. Raises only for a cancel
        # (BuildError).
        compare_speed(trt_module, request, reference_answers.parity_cases, lowered.parity_cases, report)
        # Lets find_by_cache_key and find_by_graph of later deploys find this engine; nothing without a cache.
        earlier_engines.record_for_later(pending_engine.engine_key)
        # Sets trt_module.report. Gives back the contexts and CUDA graphs of the comparison; the engine stays.
        attach_report(trt_module, report).trim()
        return trt_module
