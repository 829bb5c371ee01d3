"""All steps from a module to an engine: capture, (recall), export, reference, check, precision, build, parity, speed.

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
from torch2engine.deploy_steps.capture_model_call import capture_model_call
from torch2engine.deploy_steps.choice_by_time.fastest import with_fastest
from torch2engine.deploy_steps.choice_by_time.measure_variants import with_measured_variants
from torch2engine.deploy_steps.deploy_options import DeployOptions, Model
from torch2engine.deploy_steps.earlier_engines import EarlierEngines
from torch2engine.deploy_steps.graph_check import GraphCheck
from torch2engine.deploy_steps.lower_if_needed import lower_if_needed
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.reference_answers import answer_parity_cases
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deploy_steps.speed_note import note_if_pytorch_is_faster
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
            eager and under torch.compile, on a GPU both in CUDA graphs. It returns the fastest over all profiles' opts;
            the engine also if it is at most 5 % slower. A PyTorch that wins is a `LiveModule`: it keeps the contract of
            a call and was compared in the same way, but uses the model's own weights as they are now, and can't be
            saved. torch.compile begins nothing after `BuildConfig.optimize_seconds`. What fails or answers differently
            is left out. The report has the times and reasons in `tried`.
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
        ExportError, UnsupportedOperatorError: PyTorch can't express the model in ONNX, or TensorRT can't build it.
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
    # The comment above each statement tells what it does and returns, what it raises, and when it does nothing. A phase
    # measures the seconds of its block for the report, and shows progress; it raises BuildError if `progress` cancels.
    # Steps that may have nothing to do open their phase themselves; their comment names the phase.
    #
    # Does: puts together the arguments that describe the model and its calls. Reads and checks `examples`, and checks
    #   nothing else. A Recording in the place of `model` gives the sample and the examples if they were left out, and
    #   axes for the inputs that dynamic_axes does not name.
    # Returns: the model and these arguments.
    # Raises: InputError for `examples` that are not iterable, or empty, and for a Recording without any call, or whose
    #   calls differ in structure.
    given = ModelAndSample.of(model, sample_input, dynamic_axes, profiles, preprocess, examples, live_parameters)
    # Does: checks precision, the form of calibration, tolerance, runtime, both configs and the model's type, and that
    #   the libraries for them are installed. Calls no model.
    # Returns: the checked arguments. `request.runtime` is "tensorrt" or "onnxruntime". It is never "auto": where
    #   TensorRT can't run, "auto" becomes "onnxruntime" with a warning. `request.model` is the module inside
    #   DataParallel or torch.compile.
    # Raises: InputError. InstallationError if a library is missing, or if runtime is "tensorrt" and it can't run.
    request = DeployRequest.from_arguments(given, precision, calibration, tolerance, runtime, config, runtime_config)
    # Returns: the `EngineCache` that `cache` names. None if cache is False or None, and for cache=True without a usable
    #   home folder.
    # Raises: InputError for a cache that is none of these, an empty cache_key, or a cache_key without a cache.
    engine_cache = resolve_cache(cache, cache_key)
    # Returns: an empty report. The steps below add comparisons, notes and the seconds of phases to it.
    report = ReportBuilder(progress)
    # Returns: the search for the engine of an earlier deploy. It only keeps these four values; it reads no file yet.
    earlier_engines = EarlierEngines(request, engine_cache, cache_key, report)
    # In this block: three contexts are given to `until_accepted` below. They stay open until the block ends, by return
    #   or by an error. The last one is closed first.
    with ExitStack() as until_accepted:
        # In this block: the model is in eval mode, without autocast and grad. PyTorch computes float32 without TF32,
        #   whatever `precision` is. Calls of the model by other threads wait, and so do deploys of other threads.
        #   When the block ends, model and process are as before.
        # Raises at its end: ExportError if the model wrote into its parameters or gradients, which can't be undone.
        with undisturbed(request.model):
            with report.phase("capture"):
                # Does: calls the model on the sample, on other values of the same sizes, and on the sample again, to
                #   prove that its answers do not depend on earlier calls. Checks sample, examples, axes, profiles, live
                #   parameters, and the names of outputs in tolerance.
                # Returns: the model's call: signature, sample, examples, profiles, GPU, notes.
                # Raises: InputError, DynamicAxisError, ExportError.
                captured = capture_model_call(request)
                report.add_notes(captured.notes)
            # Does: looks for the engine of an earlier deploy with this cache_key. Compares an engine that it finds with
            #   the model anew. Its phases are "recall", "reference" and "parity".
            # Returns: a module of that engine, with its report. None if there is no such engine for this driver, or if
            #   the engine fails or gives other answers (with a warning), or if a part of the model can't be compared.
            # Raises: errors that say nothing against the engine: InputError, InstallationError, cancellation, full
            #   memory, and errors of the model on a parity case.
            # Does nothing, and returns None: without a cache_key or a cache, for ONNX Runtime, and for a budget with a
            #   metric.
            if (reused_module := earlier_engines.find_by_cache_key(captured)) is not None:
                return reused_module
            # Does: takes the first item of `calibration` if that is an iterator without a known length. All other items
            #   are read where the graph is lowered.
            # Returns: the same data, with that first item in front. None if `calibration` is None.
            # Raises: InputError for an iterator without any item, here before the slow export.
            calibration_data = checked_calibration(calibration)
            # Does: starts the process that will build the engine. The process loads TensorRT during the export, and
            #   ends when the outer block ends. For ONNX Runtime no process is started.
            # Returns: an `EarlyBuilder`, which holds the process. It may hold none: load_or_build then starts one.
            # Raises: nothing.
            early_builder = until_accepted.enter_context(request.start_early_builder())
            with report.phase("export"):
                # Does: exports the model by torch.export and torch.onnx.export.
                # Returns: the ONNX graph in a scratch folder, which is removed with the last object that uses it.
                # Raises: DynamicAxisError if the model fixes an axis, UnsupportedOperatorError, ExportError; InputError
                #   for a refittable model with quantisers.
                onnx_artifact = export_onnx(captured, refittable=config.refittable)
                # Returns: a copy of `captured`, with the input shapes, axes and profiles that the export found, e.g. an
                #   axis "past + new". The outputs keep the sizes that the sample gave them.
                captured = captured.with_axes_and_profiles_of(onnx_artifact)
            # In this block: a thread hashes the ONNX files for find_by_graph, and has ended when the block ends. There
            #   is no thread where find_by_graph does nothing, and for a refittable engine.
            with report.phase("reference"), earlier_engines.hashing_in_thread(onnx_artifact):
                # Does: calls the model on all parity cases, and again with inputs and weights that differ by rounding:
                #   in the model's own precision and in the requested one.
                # Returns: the parity cases with the model's answers, and how far rounding moves each answer.
                # Raises: ExportError or DynamicAxisError if the model fails on a case. If it fails on an invented case
                #   of random values or of other live parameters, or with the changed weights, a note says so instead.
                reference_answers = answer_parity_cases(captured, request.sensitivity_precisions(captured))
            # Does, returns, raises: as find_by_cache_key, for an engine of the same ONNX graph. Needs no cache_key.
            #   Compares with `reference_answers`, so that it has no phase "reference".
            # Does nothing, and returns None: without a cache, for ONNX Runtime, for a budget with a metric, and with
            #   calibration data, because other data would give another engine.
            if (reused_module := earlier_engines.find_by_graph(onnx_artifact, captured, reference_answers)) is not None:
                return reused_module
        # Returns: the cases in which the exported graph will be compared with the model; nothing is compared yet. For
        #   ONNX Runtime, int8 and fp8 these are all cases. For other engines, invented inputs are left out if they are
        #   larger than the smallest opt, or have the sizes of another case; the engine is compared in them later.
        graph_check = GraphCheck.for_request(request, onnx_artifact, reference_answers)
        # Does: compares the graph with the model, on ONNX Runtime, in the phase "check". A graph of at most
        #   1 GiB that is built without lowering is not compared now: `early_builder.check_during_build` is set, which
        #   load_or_build calls while the builder's process works.
        # Raises: ParityError.
        graph_check.compare_now_or_during_build(report, early_builder)
        # Does: writes the graph in the requested low precision, or in that of the model's own quantisers. Reads
        #   `calibration_data` for it. Compares the written graph with the model, on ONNX Runtime. The phase is
        #   "precision".
        # Returns: the graph, the parity cases in its dtypes, and their tolerance.
        # Raises: InputError, PrecisionError, ParityError, UnsupportedOperatorError, ExportError, InstallationError.
        # Does nothing, and returns the graph as it is: for "fp32" and "tf32" if the model has no quantisers, and for a
        #   half model in its own precision.
        lowered = lower_if_needed(request, onnx_artifact, reference_answers.parity_cases, calibration_data, report)
        if request.runtime == "onnxruntime":
            # Does: gives the report to a module of the graph, which was compared above already. A refittable module
            #   gets the model's weights. Proves axes that may be split.
            # Returns: the module, with its report.
            # Raises: RefitError; for axes that may be split ParityError and InputError.
            return attach_report(make_ort_module(lowered, request, report), report)
        # In this block: the sample's GPU is the current one of PyTorch. For a sample on the CPU nothing changes.
        with report.phase("build"), torch.cuda.device(captured.target_gpu):
            torch.cuda.empty_cache()  # TensorRT's builder is another process, and needs the memory
            # Does: loads the engine from the cache, or builds it; before, it waits for another process that builds the
            #   same engine for the same cache. Stores nothing. Calls `check_during_build`, if set.
            # Returns: the engine, not accepted yet.
            # Raises: BuildError, UnsupportedOperatorError, InstallationError; ParityError of `check_during_build`.
            pending_engine = load_or_build(
                lowered.artifact, lowered.builder_precision, config, engine_cache, report.progress, early_builder
            )
            # Until the outer block ends: other processes wait for a new engine that they need, too. If the block fails,
            #   an engine that came from the cache is removed from the cache; it stays there after errors that say
            #   nothing against it: InputError, InstallationError, cancellation, full memory.
            until_accepted.enter_context(pending_engine)
        # Until the outer block ends: after a ParityError, the graph is compared in the cases that `graph_check` left
        #   out. If the graph is wrong there, ParityError of the graph is raised instead of that of the engine.
        until_accepted.enter_context(graph_check.blaming_graph_if_wrong())
        with report.phase("parity"):
            # Does: makes a module of the engine. Compiles the kernels of a large or "tf32" TensorRT-RTX engine in other
            #   processes. Gives a refittable engine the model's weights. Compares the engine with the model in all
            #   cases, a quantised one in all but random cases. Then proves axes that may be split, checks in which
            #   precisions the engine computes, and calls the metric of a budget, in this order.
            # Returns: the module, accepted.
            # Raises: RefitError, ParityError, PrecisionError; for axes that may be split InputError.
            trt_module = make_verified_trt_module(pending_engine, lowered, request, captured.target_gpu, report)
        # Does: stores the engine with its present weights, and with the kernels that TensorRT-RTX has compiled so far;
        #   kernels that it has compiled for single shapes (kernel_specialization) are left out.
        # Does nothing: without a cache, and if the cache has this engine and ONNX file, with kernels for this driver if
        #   the engine has kernels.
        store_in_cache(pending_engine, trt_module, request)
        # Does: times engine and model (undisturbed, as above) at each profile's opt, in the phase "speed". Adds a note
        #   with reasons to the report if PyTorch's calls, or its kernels alone, are faster. Compiles no kernels.
        # Raises: BuildError of a cancellation, and nothing else.
        # Does nothing: with BuildConfig.compare_speed=False, and if engine, model and inputs are not on one GPU.
        note_if_pytorch_is_faster(trt_module, request, reference_answers.parity_cases, lowered.parity_cases, report)
        # Does: writes a record into the cache for each search above, under its key. By this record the same search of a
        #   later deploy finds this engine.
        # Does nothing: without a cache, and if no search ran in this deploy.
        earlier_engines.record_for_later(pending_engine.engine_key)
        # Does: sets `trt_module.report`. Then `TRTModule.trim` frees the execution contexts and CUDA graphs of the
        #   comparison, and their device memory; the engine and its kernels stay.
        attach_report(trt_module, report).trim()
        return trt_module
