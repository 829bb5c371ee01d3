"""A user's choices, as frozen values: `BuildConfig`, `RuntimeConfig`, `Tolerance`, `Precision` and `Budget`.

Enters: keyword arguments. Leaves: validated values; a wrong one never gets past construction. Separate so that
an option exists exactly once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal, TypeAlias, TypeGuard, cast, get_args

from torch2engine.core.errors import InputError
from torch2engine.core.package import public
from torch2engine.core.precisions import (
    CALIBRATION_METHODS,
    CAST_PRECISIONS,
    DEFAULT_PRECISION,
    LOW_PRECISIONS,
    MODEL_PRECISIONS,
    PRECISION_TYPES,
    QUANTIZED_PRECISIONS,
    WEIGHT_PRECISIONS,
    CalibrationMethod,
    PrecisionName,
    WeightPrecisionName,
    precision_word,
    quoted,
)
from torch2engine.core.shared_memory import SharedMemory
from torch2engine.core.wording import did_you_mean, with_article

__all__ = [
    "DECIDES_NOTHING",
    "DEPLOY_RUNTIMES",
    "FLAVOURS",
    "RUNTIMES",
    "Budget",
    "BuildConfig",
    "DeployRuntime",
    "Flavour",
    "Mutations",
    "OnMismatch",
    "OutOfRangePolicy",
    "Output",
    "Precision",
    "Profiles",
    "Runtime",
    "RuntimeConfig",
    "Specialization",
    "Tolerance",
    "Tolerances",
    "check_tolerance",
    "default_tolerance",
    "read_environment",
    "require_choice",
    "require_instance",
]

DECIDES_NOTHING = "decides nothing about the engine"  # marks a field that is no part of cache keys
# The words of each option, for type checkers; what runs reads the same words.
Runtime: TypeAlias = Literal["tensorrt", "onnxruntime", "auto"]
DeployRuntime: TypeAlias = Literal["tensorrt", "onnxruntime", "auto", "fastest"]
Flavour: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]
Output: TypeAlias = Literal["fresh", "static"]
Specialization: TypeAlias = Literal["none", "lazy", "eager"]
OutOfRangePolicy: TypeAlias = Literal["error", "split", "eager"]
Profiles: TypeAlias = Sequence[Any] | Literal["auto"]  # {axis name: (min, opt, max)} each
Mutations: TypeAlias = Literal["refuse", "write_back"]
Optimize: TypeAlias = Literal["auto", "measure"]
AttentionForm: TypeAlias = Literal["node", "products"]
HardwareCompatibility: TypeAlias = Literal["same_compute_capability", "ampere_plus"]
OnMismatch: TypeAlias = Literal["error", "rebuild"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)
DEPLOY_RUNTIMES: tuple[str, ...] = get_args(DeployRuntime)
FLAVOURS: tuple[str, ...] = get_args(Flavour)


def read_environment() -> dict[str, str]:
    """The variables of this process's environment, for the doctor."""
    return dict(os.environ)


def require_choice(subject: str, value: object, allowed: Sequence[object], meant: str = "") -> None:
    """Refuse a value that is not one of the allowed words.

    Args:
        subject: the option's name.
        value: what was given.
        allowed: the words.
        meant: the word that the value stands for, if the caller knows it.

    Raises:
        InputError: listing the allowed words, with the one that was probably meant.
    """
    if value not in allowed:
        known = f"pass {meant!r}" if meant in allowed else ""
        fix = known or did_you_mean(value, allowed) or "pass one of these"
        raise InputError(subject, got=repr(value), allowed="one of " + ", ".join(map(repr, allowed)), fix=fix)


def require_instance(subject: str, value: object, kind: type) -> None:
    """Refuse a value of another class.

    Raises:
        InputError: naming the class.
    """
    if not isinstance(value, kind):
        raise InputError(
            subject, got=repr(value), allowed=with_article(kind.__name__), fix=f"pass t2e.{kind.__name__}(...)"
        )


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value is an int of at least 1; True is no int."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, subject: str, value: object, allowed: str, fix: str = "") -> None:
    """Refuse a value for which a condition does not hold.

    Raises:
        InputError: saying what is allowed.
    """
    if not holds:
        raise InputError(subject, got=repr(value), allowed=allowed, fix=fix or "pass such a value")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_capability(value: object) -> bool:
    return isinstance(value, (tuple, list)) and [type(number) for number in cast("list[object]", value)] == [int, int]


def check_tolerance(value: object) -> None:
    """Refuse a value that is not a Tolerance, a Mapping from outputs to tolerances, or None.

    Raises:
        InputError: showing one.
    """
    if isinstance(value, Mapping):
        for name, tolerance in cast("Mapping[object, object]", value).items():
            require_instance(f"tolerance[{name!r}]", tolerance, Tolerance)
        return
    if value is not None and not isinstance(value, Tolerance):
        raise InputError(
            "tolerance",
            got=repr(value),
            allowed="a Tolerance, a Mapping from output names to Tolerances, or None",
            fix="e.g. Tolerance(rel_l2=1e-3, max_rel=1e-2)",
        )


@public
@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Options of what is built.

    Args:
        flavour: "tensorrt", "tensorrt_rtx", or None for the one that is installed (TensorRT where both are).
        workspace_bytes: the most device memory, in bytes, for one layer: while it runs, and while the builder tries
            tactics. None leaves TensorRT's own limit, all of the device's memory.
        refittable: build an engine that `TRTModule.refit` can give other weights. It is off because the build takes
            longer: on an H200, ResNet-50 in half precision takes TensorRT-RTX 1.6 15 s or more instead of under 1 s.
            Calls are as fast. TensorRT builds such an engine only where there is a GPU. int8, fp8 and int4 have none.
        mutations: how a model that writes into its inputs is handled, such as one with a key-value cache. "refuse": an
            ExportError. "write_back": each call copies the new values into the caller's tensors, on the current stream
            after the engine. Where the model returns the very input, the caller's own tensor is returned.
        compute_capabilities: the GPUs that a plan of TensorRT-RTX is built for, e.g. ``((7, 5), (8, 6))``; it runs on
            no others. Empty is TensorRT-RTX's own choice: 8.0 and later in 1.6. None of these GPUs need be here. More
            of them can make the plan larger: with (7, 5), that of a small network is 1.9 times as large. TensorRT
            builds for the present GPU alone, and refuses this.
        hardware_compatibility: other GPUs that a plan of TensorRT is to run on. "same_compute_capability": every GPU
            of the present one's compute capability, with fewer multiprocessors too. "ampere_plus": every GPU from 8.0
            on. Such a plan leaves out kernels that need more than the least of these GPUs has, so calls may take
            longer; build a plan for each GPU where time counts. TensorRT-RTX has `compute_capabilities` instead.
        time_limit_s: the longest that a build may take, in seconds; None for no limit. A builder process that is
            stopped, or hangs without computing, ends in a BuildError without it too.
        compare_speed: let deploy time a new engine beside the model at each profile's opt, where both are on one GPU.
            A note in the report says where PyTorch is faster, and why. It takes under a second, or three calls of each
            where these take long. An engine from the cache is not timed again: it has its note.
        attention: the form in which TensorRT-RTX gets attention in half precision. "node": one Attention node, which
            its fused kernel takes. "products": the products with the softmax between them, as TensorRT gets it. None
            takes "node", and "products" for a refittable engine: TensorRT-RTX makes weights of its own for the node,
            which no refit can give. It often fuses the products too; the report says whether it did.
        optimize: how deploy finds the fastest engine. "auto": by rules that cost no build. "measure": it also builds
            other variants: attention in the other form, a profile for each size, kernels for single shapes. Each is
            compared with the model like an engine, and all are timed at each profile's opt. The cache remembers the
            choice for this ONNX graph and GPU. Only TensorRT has variants; without it a note says so.
        optimize_seconds: how long deploy may look for something faster, in seconds. Under optimize="measure" it begins
            no further variant after that, and under runtime="fastest" torch.compile begins no further graph. What has
            begun is finished.

    Raises:
        InputError: an unknown word, a workspace that is no positive int, a refittable that is no bool, compute
            capabilities that are no pairs of ints, a time limit that is no positive number, a negative
            optimize_seconds, or attention="node" with refittable=True.

    >>> config = t2e.BuildConfig(workspace_bytes=2**30, time_limit_s=600)
    >>> t2e.build(onnx, config=config)
    EngineArtifact('...', precision='fp32')
    """

    flavour: Flavour | None = None
    workspace_bytes: int | None = None
    refittable: bool = False
    mutations: Mutations = "refuse"
    compute_capabilities: tuple[tuple[int, int], ...] = ()
    hardware_compatibility: HardwareCompatibility | None = None
    time_limit_s: float | None = field(default=None, metadata={DECIDES_NOTHING: True})
    compare_speed: bool = field(default=True, metadata={DECIDES_NOTHING: True})
    attention: AttentionForm | None = None
    optimize: Optimize = field(default="auto", metadata={DECIDES_NOTHING: True})
    optimize_seconds: float = field(default=120.0, metadata={DECIDES_NOTHING: True})

    def __post_init__(self) -> None:
        _require(
            self.time_limit_s is None or (_is_finite(self.time_limit_s) and self.time_limit_s > 0),
            "BuildConfig.time_limit_s",
            self.time_limit_s,
            "a positive number of seconds, or None",
            "e.g. time_limit_s=600",
        )
        _require(
            _is_finite(self.optimize_seconds) and self.optimize_seconds >= 0,
            "BuildConfig.optimize_seconds",
            self.optimize_seconds,
            "a number of seconds, at least 0",
            "e.g. optimize_seconds=60",
        )
        for name in ("refittable", "compare_speed"):
            flag: object = getattr(self, name)
            _require(_is_bool(flag), f"BuildConfig.{name}", flag, "True or False")
        require_choice("BuildConfig.optimize", self.optimize, get_args(Optimize))
        require_choice("BuildConfig.attention", self.attention, (None, *get_args(AttentionForm)))
        _require(
            not (self.refittable and self.attention == "node"),
            "BuildConfig.attention",
            self.attention,
            "'products' or None with refittable=True, since TensorRT-RTX makes weights of its own for the node",
            "leave attention out",
        )
        require_choice("BuildConfig.mutations", self.mutations, get_args(Mutations))
        levels = (None, *get_args(HardwareCompatibility))
        require_choice("BuildConfig.hardware_compatibility", self.hardware_compatibility, levels)
        _require(
            _is_list(self.compute_capabilities) and all(map(_is_capability, self.compute_capabilities)),
            "BuildConfig.compute_capabilities",
            self.compute_capabilities,
            "pairs of ints",
            "e.g. compute_capabilities=((8, 6), (8, 9))",
        )
        pairs = tuple((major, minor) for major, minor in self.compute_capabilities)
        object.__setattr__(self, "compute_capabilities", pairs)  # a frozen value holds no list of the caller's
        if self.flavour is not None:
            require_choice("BuildConfig.flavour", self.flavour, FLAVOURS)
        _require(
            self.workspace_bytes is None or is_count(self.workspace_bytes),
            "BuildConfig.workspace_bytes",
            self.workspace_bytes,
            "a positive int, in bytes, or None",
            "e.g. workspace_bytes=4 << 30 for 4 GiB",
        )

    @property
    def attention_form(self) -> AttentionForm:
        """The form that `attention` stands for."""
        return self.attention or ("products" if self.refittable else "node")


@public
@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Options of a deployed module's calls.

    Args:
        contexts: execution contexts that each stream may hold, one for each shape. Each takes some MiB of host and
            device memory. A shape beyond them takes over the context that was used least recently. TensorRT then plans
            it anew, which costs two calls or more.
        max_shapes: shapes that each stream remembers, each with its profile, output sizes and CUDA graph. The one that
            was used least recently is forgotten.
        streams: streams that may compute at once, each with its own working memory. A further stream takes over the
            memory of the one that was used least recently, once its work is done.
        cuda_graphs: when a call is launched as one CUDA graph. Graphs hold device memory for every shape. Where
            TensorRT can't be captured, one warning says so and calls go on without.

            - "auto": where it pays. Nothing is captured while another Python thread might wait for the whole device,
              because CUDA forbids that wait during a capture.
            - True: from the second call of every shape on. A graph of a model in parts then takes custom operators too.
            - False: never.
        output: who owns the results.

            - "fresh": the caller; no later call changes a result.
            - "static": the module. Each shape on each stream has its own result tensors, and each call overwrites them.
              This saves an allocation, and a copy out of a CUDA graph. A stream beyond `streams` makes everything
              anew, because readers of the replaced stream's results may not be done.
        kernel_specialization: whether TensorRT-RTX compiles kernels for the exact shapes of calls. These are often
            faster. But on an H200, 1.6.1 then answered an EfficientNet-B0 in float32 wrongly (relative error 1) at
            every shape but the first one of the process. Check every shape.

            - "none": it uses kernels for any shape.
            - "lazy": it compiles in the background, and then changes over. What deploy checked may change.
            - "eager": the first call of a shape waits for the compiler.
        out_of_range: what happens to a size outside every profile.

            - "error": a ShapeError.
            - "split": a larger batch is answered in chunks, each a call of its own shape. The ONNX graph must have no
              operator that lets rows influence each other. Besides, rows of the caller are answered whole and in
              chunks, and compared: once for each axis, with six calls and a wait for the GPU.
            - "eager": the PyTorch module answers in evaluation mode, with one warning. It stays alive for that, and no
              other thread may train it during such a call. Such results are always fresh.
        shared_memory: working memory that the module shares with others. None: each stream of each module has its own.

    Raises:
        InputError: a number that is no positive int, or an unknown word.

    >>> module = t2e.ORTModule(onnx, runtime_config=t2e.RuntimeConfig(out_of_range="split"))
    >>> module(torch.rand(40, 3, 64, 64)).shape  # the profile ends at 32
    torch.Size([40, 10])
    """

    contexts: int = 64
    max_shapes: int = 256
    streams: int = 4
    cuda_graphs: bool | Literal["auto"] = "auto"
    output: Output = "fresh"
    kernel_specialization: Specialization = "none"
    out_of_range: OutOfRangePolicy = "error"
    shared_memory: SharedMemory | None = None

    def __post_init__(self) -> None:
        for name in ("contexts", "max_shapes", "streams"):
            count: object = getattr(self, name)
            _require(is_count(count), f"RuntimeConfig.{name}", count, "a positive int")
        graphs = self.cuda_graphs
        _require(_is_bool(graphs) or graphs == "auto", "RuntimeConfig.cuda_graphs", graphs, "'auto', True or False")
        require_choice("RuntimeConfig.output", self.output, get_args(Output))
        require_choice("RuntimeConfig.kernel_specialization", self.kernel_specialization, get_args(Specialization))
        require_choice("RuntimeConfig.out_of_range", self.out_of_range, get_args(OutOfRangePolicy))
        if self.shared_memory is not None:
            require_instance("RuntimeConfig.shared_memory", self.shared_memory, SharedMemory)

    def on_cpu(self) -> RuntimeConfig:
        """A copy with only those options that mean something on the CPU."""
        return RuntimeConfig(out_of_range=self.out_of_range)

    def only_gpu(self) -> str:
        """The options that were chosen and that `on_cpu` leaves out, e.g. "streams=2, output='static'"."""
        left = self.on_cpu()
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name}={value!r}" for name, value in chosen.items() if value != getattr(left, name))

    def check_cpu(self, subject: str) -> None:
        """Refuse options that mean nothing on the CPU.

        Raises:
            InputError: naming the options.
        """
        if chosen := self.only_gpu():
            raise InputError(
                subject,
                got=chosen,
                allowed="only out_of_range: the rest of RuntimeConfig is for engines on a GPU",
                fix="leave it out, or deploy with runtime='tensorrt'",
            )


@public
@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """When a candidate output counts as equal to its reference.

    Args:
        rel_l2: bound on ‖candidate − reference‖₂ / ‖reference‖₂ over a whole output.
        max_rel: bound on local errors, which rel_l2 would hide. It applies to every element: the absolute
            difference, in units of the reference's absolute value plus the root mean square of its surroundings. It
            applies to every slice along every dimension, too: ‖candidate − reference‖₂ / ‖reference‖₂.
        abs: absolute difference that counts as none. It is never more than rel_l2 times the reference's root mean
            square, unless the reference is all zero. So it does not hide an output whose values are all tiny.
        mismatch: share of the elements of an integer or bool output that may differ. Near ties don't count, where the
            ONNX graph shows the scores of an argmax or a top-k, or the operands of a comparison.

    For a deployed model, a field that is left out has the default of the precision. With `rel_l2` left out, the model's
    own sensitivity may allow more.

    Beyond the bounds, an output must follow its reference:

    - Steps from row to row must correlate, where they stand out of the noise.
    - No slice and no frequent value of an integer output may be mostly wrong.
    - Elements that are NaN or Inf must be the same in both.
    - Mask values are compared one by one and do not set the scale: two or more values, a thousand times above all else.
    - Slices of fewer than 16 elements are compared together with their neighbours.
    - Any slice may carry noise besides: a fifth of rel_l2 times the output's size.

    Raises:
        InputError: a bound that is negative or not finite.

    >>> tolerance = t2e.Tolerance(rel_l2=1e-3, max_rel=1e-2)
    >>> t2e.testing.assert_parity(model, module, sample, tolerance=tolerance).passed
    True
    """

    rel_l2: float | None = None
    max_rel: float | None = None
    abs: float | None = None
    mismatch: float | None = None

    def __post_init__(self) -> None:
        for name in ("rel_l2", "max_rel", "abs", "mismatch"):
            bound: object = getattr(self, name)
            allowed = "a finite number of at least 0, or None for the precision's"
            _require(bound is None or (_is_finite(bound) and bound >= 0), f"Tolerance.{name}", bound, allowed)

    @classmethod
    def default(cls, precision: str) -> Tolerance:
        """The tolerance that goes with a precision: "fp32", "tf32", "fp16", "bf16", "int8" or "fp8".

        rel_l2 is a few times what the arithmetic's rounding (2⁻²⁴, 2⁻¹¹, 2⁻¹¹, 2⁻⁸) adds up to in known networks: an
        engine's ResNet-50 in float32 differs from PyTorch by 1.2e-4, BERT and GPT-2 by 3e-5 (TensorRT-RTX 1.6.1, H200).
        max_rel leaves room for the tail of that noise in large outputs. In int8 and fp8 trained networks stay within
        0.03, and a ResNet in fp8 within 0.054. Above 0.05 in int8 and 0.06 in fp8, answers are mostly useless.

        In float32 ONNX Runtime gets a tenth of rel_l2 and max_rel by default: it rounds less than an engine.

        Raises:
            InputError: listing the precisions.
        """
        require_choice("precision", precision, MODEL_PRECISIONS)
        return default_tolerance(precision)


def default_tolerance(precision: str) -> Tolerance:
    """Make the tolerance that the table has for a precision, that of weights alone included."""
    row = PRECISION_TYPES[precision]
    return Tolerance(rel_l2=row.rel_l2, max_rel=row.max_rel, abs=row.abs, mismatch=row.mismatch)


Tolerances: TypeAlias = "Tolerance | Mapping[str, Tolerance]"
"""One tolerance for all outputs, or one for each output that is named."""


@public
@dataclass(frozen=True, kw_only=True)
class Budget:
    """The loss of accuracy that a low precision may cause.

    If it causes more, modules go back to float32, the worst ones first.

    Args:
        tolerance: what parity must hold; by default the one that deploy was given, or `Tolerance.default`.
        metric: decides instead of parity. It is called with (outputs, batch): the outputs in the model's own structure,
            and a batch of the calibration data as it was given. It returns a number, and more is better. The mean over
            all batches must reach `floor`. It needs `calibration`.
        floor: the least mean of the metric.
        rebuilds: the most ONNX graphs that the search makes and compares.

    Raises:
        InputError: a metric without a floor or a floor without a metric, or a number out of range.

    >>> def similarity(outputs, batch):
    ...     return torch.cosine_similarity(outputs, model(batch)).mean().item()
    >>> budget = t2e.Budget(metric=similarity, floor=0.99)
    >>> precision = t2e.Precision("fp16", budget=budget)
    >>> t2e.export(model, sample, precision=precision, calibration=[sample]).precision
    'fp16'
    """

    tolerance: Tolerance | None = None
    metric: Callable[[Any, Any], float] | None = None
    floor: float | None = None
    rebuilds: int = 8

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            require_instance("Budget.tolerance", self.tolerance, Tolerance)
        if (self.metric is None) != (self.floor is None):
            given, missing = ("floor", "metric") if self.metric is None else ("metric", "floor")
            raise InputError(
                "Budget", got=f"{given} without {missing}", allowed="both or neither", fix=f"give {missing} too"
            )
        if self.metric is not None and self.tolerance is not None:
            raise InputError(
                "Budget",
                got="a metric and a tolerance",
                allowed="one of them",
                fix="leave out the tolerance: the metric judges",
            )
        if self.metric is not None:
            _require(callable(self.metric), "Budget.metric", self.metric, "a callable given (outputs, batch)")
        if self.floor is not None:
            _require(_is_finite(self.floor), "Budget.floor", self.floor, "a finite number")
        is_int = type(self.rebuilds) is int
        _require(is_int and self.rebuilds >= 1, "Budget.rebuilds", self.rebuilds, "an int of at least 1")


@public
@dataclass(frozen=True)
class Precision:
    """The arithmetic of a deployed model.

    The ONNX graph itself is typed or quantised, in the same way for every flavour.

    Args:
        dtype: "fp32" (TF32 off), "tf32", "fp16", "bf16", "int8" or "fp8". In "int8" and "fp8" convolutions and matrix
            products are quantised, and the rest stays in the model's own dtypes.
        keep_fp32: torch modules that stay in float32, by path, e.g. ``("head", "layers.*.norm")``; with all inside.
        budget: the loss of accuracy that the precision may cause. With it, deploy looks for modules that must stay in
            float32. None: deploy fails where the comparison fails.
        weights: "int4" quantises the weights of matrix products alone, in blocks, beside "fp32", "fp16" or "bf16".
        method: how "int8" finds the range of a tensor in the calibration data: "max", "percentile" or "entropy".
        percentile: share of the values, in percent, that "percentile" keeps.
        low_io: let the model's float32 inputs and outputs become "fp16" or "bf16" too.

    Raises:
        InputError: an unknown word, a number out of range, or options that don't go together.

    >>> precision = t2e.Precision("int8", keep_fp32=["head"], method="entropy")
    >>> precision.keep_fp32, precision.method
    (('head',), 'entropy')
    """

    dtype: PrecisionName = "fp32"
    _: KW_ONLY
    keep_fp32: Sequence[str] = ()
    budget: Budget | None = None
    weights: WeightPrecisionName | None = None
    method: CalibrationMethod = "max"
    percentile: float = 99.99
    low_io: bool = False

    def __post_init__(self) -> None:
        require_choice("precision", self.dtype, MODEL_PRECISIONS, meant=precision_word(self.dtype))
        require_choice("Precision.weights", self.weights, (None, *WEIGHT_PRECISIONS))
        require_choice("Precision.method", self.method, CALIBRATION_METHODS)
        paths: Any = self.keep_fp32
        _require(_is_list(paths), "Precision.keep_fp32", paths, "a list of module paths", f"[{paths!r}]")
        for path in paths:
            is_path = isinstance(path, str) and path != ""
            _require(is_path, "Precision.keep_fp32", path, "paths of modules, with * and ?")
        object.__setattr__(self, "keep_fp32", tuple(paths))
        if self.budget is not None:
            require_instance("Precision.budget", self.budget, Budget)
        if not _is_finite(self.percentile) or not 50 < self.percentile <= 100:
            raise InputError(
                "Precision.percentile",
                got=repr(self.percentile),
                allowed="a number above 50 up to 100",
                fix="e.g. 99.99",
            )
        beside_weights = (DEFAULT_PRECISION, *CAST_PRECISIONS)
        if self.weights is not None and self.dtype not in beside_weights:
            raise InputError(
                "Precision.weights",
                got=f"{self.weights!r} with dtype {self.dtype!r}",
                allowed=f"weights alone beside {quoted(beside_weights, 'or')}",
                fix="take one of these for dtype, or leave weights out",
            )
        if self.weights is not None and self.budget is not None:
            raise InputError(
                "Precision.budget",
                got=f"a budget with weights={self.weights!r}",
                allowed="a search among modules that are low in their dtype",
                fix="leave out the budget, and name modules in keep_fp32",
            )
        if self.low_io and self.dtype not in CAST_PRECISIONS:
            raise InputError(
                "Precision.low_io",
                got=f"True with dtype {self.dtype!r}",
                allowed=quoted(CAST_PRECISIONS, "or"),
                fix="take one of these, or leave low_io out",
            )

    @classmethod
    def of(cls, value: object) -> Precision:
        """A Precision unchanged, or the Precision that a name means.

        Raises:
            InputError: neither, or an unknown word.
        """
        if isinstance(value, Precision):
            return value
        word = precision_word(value)
        if not isinstance(value, str):
            allowed = f"one of {', '.join(map(repr, MODEL_PRECISIONS))}, or a Precision"
            fix = f"pass {word!r}" if word else "pass one of these"
            raise InputError("precision", got=repr(value), allowed=allowed, fix=fix)
        return cls(cast("PrecisionName", value))  # the constructor refuses other words

    @property
    def changes_graph(self) -> bool:
        """Whether the ONNX graph must be typed or quantised; "fp32" and "tf32" are options of the builder."""
        return self.dtype in LOW_PRECISIONS or self.weights is not None

    @property
    def is_quantized(self) -> bool:
        """Whether weights, or weights and activations, become integers or float8."""
        return self.dtype in QUANTIZED_PRECISIONS or self.weights is not None

    @property
    def lowest_type(self) -> str:
        """The number type that causes the largest errors: that of the weights where only weights are quantised."""
        return self.weights or self.dtype

    @property
    def builder_precision(self) -> str | None:
        """The precision for TensorRT's builder: "fp32" or "tf32"; None where the ONNX graph's dtypes decide alone."""
        return self.dtype if PRECISION_TYPES[self.dtype].uses_tf32 else None
