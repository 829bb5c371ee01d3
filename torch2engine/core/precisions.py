"""The table of precisions: one row for each type that a model can compute in.

Enters: nothing. Leaves: rows of plain facts, and sets of names that follow from them. Separate so that each fact about
a precision stands in one place: configuration, export, rewriting, comparisons and reports all need them.

A new precision is one row here. ARCHITECTURE.md names the other files that it needs ("Where a change goes").
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias, get_args

__all__ = [
    "CALIBRATION_METHODS",
    "CAST_PRECISIONS",
    "DEFAULT_PRECISION",
    "FLOAT32_PRECISIONS",
    "LOW_PRECISIONS",
    "MODEL_PRECISIONS",
    "PRECISION_TYPES",
    "QUANTIZED_PRECISIONS",
    "WEIGHT_PRECISIONS",
    "CalibrationMethod",
    "Float32PrecisionName",
    "PrecisionName",
    "PrecisionType",
    "QuantizationRules",
    "SensitivityFactors",
    "WeightPrecisionName",
    "lowest_cast_precision",
    "precision_word",
    "quoted",
    "sensitivity_factor",
]


@dataclass(frozen=True, kw_only=True)
class SensitivityFactors:
    """The largest error of a candidate, as a multiple of the reference's sensitivity, by the runtime that answers.

    The errors of a study of models, divided by their sensitivities, lie below (`benchmarks/trust.py`). Of 36 models on
    TensorRT-RTX 1.6.1 and an H200 the worst had 205 in fp32 and 8.2 in fp16. ONNX Runtime computes in true float32. The
    convolutions of TensorRT-RTX have about 80 times the rounding error of cuDNN's.
    """

    onnxruntime: float
    tensorrt: float
    tensorrt_rtx: float


CalibrationMethod: TypeAlias = Literal["max", "percentile", "entropy"]
CALIBRATION_METHODS: tuple[str, ...] = get_args(CalibrationMethod)
"""Ways to find the range of a tensor in the calibration data."""


@dataclass(frozen=True, kw_only=True)
class QuantizationRules:
    """The operators that are quantised to a type, and the methods that find its ranges.

    Args:
        methods: the `CALIBRATION_METHODS` that may find a range; the first one replaces a method that may not.
        float32_operators: {operator: why it stays in float32}.
        float32_activation_products: why a product of two activations stays in float32; "" if it is quantised.
        no_convolutions: the flavours of TensorRT that build no convolution in this type.
    """

    methods: tuple[str, ...] = ("max",)
    float32_operators: Mapping[str, str] = field(default_factory=dict[str, str])
    float32_activation_products: str = ""
    no_convolutions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PrecisionType:
    """Facts about one precision.

    Args:
        name: the user's word for it.
        made_by: "builder" for float32 arithmetic, which the graph does not show. "cast" for a graph whose tensors have
            the type. "quantize" for a graph with QuantizeLinear and DequantizeLinear. "weights" for a type of weights
            alone, beside another precision.
        dtype: the type's name in PyTorch.
        onnx_type: the type's name in onnx.TensorProto.
        bits: size of one number.
        largest: the largest finite value; for integers the largest that a symmetric scale uses.
        largest_kept: nodes with larger values stay in float32 when tensors are cast.
        rel_l2, max_rel, abs: fields of the default `Tolerance`.
        onnxruntime_share: the share of rel_l2 and max_rel that ONNX Runtime may be off by default. It computes in true
            float32: of 70 models the worst is off by 8.8e-6 in rel_l2 and by 3.4e-5 in max_rel, while one cast too
            many, to float16, moves an answer by 2e-4 (benchmarks/trust.py, an H200's answers as the reference).
        mismatch: the field of the default `Tolerance` for integers: the share of them that may differ, where the graph
            does not show what they were chosen from.
        sensitivity_factors: the default tolerance grows with the model's own sensitivity, times these.
        rounding: half a unit in the last place, relative to the number; for integers, to the largest number of a row.
        smallest: values up to this may count as 0: the least normal number of a narrow type, 0 for a wide one.
        has_one_step: whether all numbers of a row are multiples of one step, as in integer types.
        inspector_words: regular expression of the type in TensorRT's engine inspector; "" if it never appears there.
            TensorRT 11 and RTX say "Half"; TensorRT 10 may say "Channel major FP16 format where channel % 8 == 0". See
            https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
        other_onnx_types: further types in a graph that are computed in this precision.
        quantization: the rules of a type that graphs are quantised to.
        uses_tf32: whether float32 products may be rounded to TF32.
        folds_batch_norm: whether onnxscript 0.7 folds a BatchNorm in this type without another rounding. In float16
            the root of a variance of 1 + 0.001 becomes 1; through MobileNetV3's 46 norms that moved answers by 7.6 %.
        is_rewritten: whether its other rewrite rules are right in this type.
        package, module: the library that writes a graph of this type, as it is installed and as it is imported; "" if
            none is needed.
    """

    name: str
    made_by: Literal["builder", "cast", "quantize", "weights"]
    dtype: str
    onnx_type: str
    bits: int
    largest: float
    rel_l2: float
    max_rel: float
    abs: float
    sensitivity_factors: SensitivityFactors
    rounding: float
    onnxruntime_share: float = 1.0
    mismatch: float = 0.0
    smallest: float = 0.0
    has_one_step: bool = False
    largest_kept: float = math.inf
    inspector_words: str = ""
    other_onnx_types: tuple[str, ...] = ()
    quantization: QuantizationRules = QuantizationRules()
    uses_tf32: bool = False
    folds_batch_norm: bool = True
    is_rewritten: bool = True
    package: str = ""
    module: str = ""

    @property
    def has_headroom(self) -> bool:
        """Whether nodes stay in float32 long before the type overflows."""
        return self.largest_kept < self.largest / 2


# rel_l2 and its companions: see `Tolerance.default`.
# largest_kept of fp16 is an eighth of 65504, since later data may be larger than the calibration data. AutoCast's own
# 512 would leave the residual stream of trained transformers in float32, although its rounding is relative. That of
# bf16 is below the values that round to infinity, such as float32's lowest value in masks.
_ROWS = (
    PrecisionType(
        name="fp32",
        made_by="builder",
        dtype="float32",
        onnx_type="FLOAT",
        bits=32,
        largest=3.4028234663852886e38,
        rel_l2=2.5e-4,
        max_rel=1e-3,
        abs=1e-6,
        onnxruntime_share=0.1,
        sensitivity_factors=SensitivityFactors(onnxruntime=16.0, tensorrt=400.0, tensorrt_rtx=600.0),
        rounding=2**-24,
        inspector_words=r"FP32|\bFloat\b",
    ),
    PrecisionType(
        name="tf32",  # TensorRT's inspector calls it float32
        made_by="builder",
        uses_tf32=True,
        dtype="float32",
        onnx_type="FLOAT",
        bits=32,
        largest=3.4028234663852886e38,
        rel_l2=5e-3,
        max_rel=5e-2,
        abs=1e-4,
        mismatch=1e-3,
        sensitivity_factors=SensitivityFactors(onnxruntime=16.0, tensorrt=20.0, tensorrt_rtx=20.0),
        rounding=2**-11,
    ),
    PrecisionType(
        name="fp16",
        package="nvidia-modelopt",
        module="modelopt",
        made_by="cast",
        dtype="float16",
        onnx_type="FLOAT16",
        bits=16,
        largest=65504.0,
        largest_kept=8188.0,
        folds_batch_norm=False,
        rel_l2=1e-2,
        max_rel=1e-1,
        abs=1e-4,
        mismatch=2e-3,
        sensitivity_factors=SensitivityFactors(onnxruntime=8.0, tensorrt=8.0, tensorrt_rtx=16.0),
        rounding=2**-11,
        smallest=6.1e-5,
        inspector_words=r"FP16|Half",
    ),
    PrecisionType(
        name="bf16",
        package="nvidia-modelopt",
        module="modelopt",
        made_by="cast",
        folds_batch_norm=False,
        is_rewritten=False,
        dtype="bfloat16",
        onnx_type="BFLOAT16",
        bits=16,
        largest=3.3895313892515355e38,
        largest_kept=3.38e38,
        rel_l2=5e-2,
        max_rel=2.5e-1,
        abs=1e-3,
        mismatch=1e-2,
        sensitivity_factors=SensitivityFactors(onnxruntime=8.0, tensorrt=8.0, tensorrt_rtx=16.0),
        rounding=2**-8,
        inspector_words=r"BF16|BFloat16",
    ),
    PrecisionType(
        name="int8",
        made_by="quantize",
        dtype="int8",
        onnx_type="INT8",
        bits=8,
        largest=127.0,
        rel_l2=5e-2,
        max_rel=5e-1,
        abs=1e-3,
        mismatch=2e-2,
        sensitivity_factors=SensitivityFactors(onnxruntime=1.0, tensorrt=1.0, tensorrt_rtx=1.0),
        rounding=0.5 / 127,
        has_one_step=True,
        smallest=1e-3,
        inspector_words=r"\bInt8|INT8",
        other_onnx_types=("UINT8",),
        # Attention weights are many small numbers below a largest of 1, and steps of 1/127 lose most of them.
        # TensorRT-RTX 1.6.1 builds int8 matrix products, but never an int8 convolution.
        quantization=QuantizationRules(
            methods=CALIBRATION_METHODS,
            float32_activation_products="a product of two activations, which int8 would spoil",
            no_convolutions=("tensorrt_rtx",),
        ),
    ),
    PrecisionType(
        name="fp8",  # E4M3
        package="ml_dtypes",
        module="ml_dtypes",
        made_by="quantize",
        dtype="float8_e4m3fn",
        onnx_type="FLOAT8E4M3FN",
        bits=8,
        largest=448.0,
        rel_l2=6e-2,
        max_rel=6e-1,
        abs=1e-3,
        mismatch=2e-2,
        sensitivity_factors=SensitivityFactors(onnxruntime=1.0, tensorrt=1.0, tensorrt_rtx=1.0),
        rounding=2**-4,
        smallest=1e-3,
        inspector_words=r"FP8",
        quantization=QuantizationRules(
            float32_operators={
                "ConvTranspose": "a transposed convolution, for which TensorRT-RTX builds fp8 engines that can't run"
            },
        ),
    ),
    PrecisionType(
        name="int4",  # answers as roughly as int8
        made_by="weights",
        dtype="int4",
        onnx_type="INT4",
        bits=4,
        largest=7.0,
        rel_l2=5e-2,
        max_rel=5e-1,
        abs=1e-3,
        mismatch=2e-2,
        sensitivity_factors=SensitivityFactors(onnxruntime=1.0, tensorrt=1.0, tensorrt_rtx=1.0),
        rounding=0.5 / 7,
        has_one_step=True,
        smallest=1e-3,
    ),
)

PRECISION_TYPES = {row.name: row for row in _ROWS}
"""Rows by name."""
DEFAULT_PRECISION: PrecisionName = "fp32"
"""The precision of a model that has no lower one: float32."""


def _made_by(*ways: str) -> tuple[str, ...]:
    return tuple(row.name for row in _ROWS if row.made_by in ways)


MODEL_PRECISIONS = _made_by("builder", "cast", "quantize")
"""Precisions that a whole model can have."""
PrecisionName: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]
"""The same names for type checkers, which read no tables; a test compares both."""
Float32PrecisionName: TypeAlias = Literal["fp32", "tf32"]
"""The names of `FLOAT32_PRECISIONS` for type checkers."""
WeightPrecisionName: TypeAlias = Literal["int4"]
"""The names of `WEIGHT_PRECISIONS` for type checkers."""
FLOAT32_PRECISIONS = _made_by("builder")
"""Precisions that a float32 graph is built in."""
CAST_PRECISIONS = _made_by("cast")
"""Precisions for which a graph's tensors are cast."""
QUANTIZED_PRECISIONS = _made_by("quantize")
"""Precisions for which a graph is quantised by calibrated ranges."""
LOW_PRECISIONS = _made_by("cast", "quantize")
"""Precisions for which the graph is rewritten."""
WEIGHT_PRECISIONS = _made_by("weights")
"""Precisions of weights alone."""


def lowest_cast_precision(dtypes: Collection[str]) -> str | None:
    """Find the precision of the floating-point dtypes of a model: the one with the loosest tolerance, or None.

    Args:
        dtypes: as PyTorch spells them, e.g. "float16".

    >>> lowest_cast_precision({"float32", "float16"}), lowest_cast_precision({"float32"})
    ('fp16', None)
    """
    found = [row for row in _ROWS if row.made_by == "cast" and row.dtype in dtypes]
    return max(found, key=lambda row: row.rel_l2).name if found else None


def sensitivity_factor(runtime: str, precision: str) -> float:
    """Give the largest error of a candidate, as a multiple of the reference's sensitivity.

    Args:
        runtime: "onnxruntime", "tensorrt" or "tensorrt_rtx".
        precision: a row's name.

    Returns:
        the factor; 0 for an unknown runtime, whose rounding nobody has measured.

    >>> sensitivity_factor("tensorrt_rtx", "fp32") > sensitivity_factor("onnxruntime", "fp32")
    True
    """
    return asdict(PRECISION_TYPES[precision].sensitivity_factors).get(runtime, 0.0)


def quoted(names: Iterable[object], conjunction: str) -> str:
    """Join words for an error's text.

    >>> quoted(("fp16", "bf16", "int8"), "or")
    "'fp16', 'bf16' or 'int8'"
    """
    words = [repr(name) for name in names]
    return f" {conjunction} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


_OTHER_NAMES = {"half": "fp16", "float": "fp32", "float8": "fp8", "e4m3": "fp8", "single": "fp32"}


def precision_word(value: object) -> str:
    """The precision that a dtype of PyTorch or numpy means, or another name of one; "" for anything else.

    >>> precision_word("torch.bfloat16"), precision_word("half"), precision_word("fast")
    ('bf16', 'fp16', '')
    """
    name = (value.__name__ if isinstance(value, type) else str(value)).rpartition(".")[2].lower()
    by_dtype = {row.dtype: row.name for row in reversed(_ROWS) if row.made_by != "weights"}
    return name if name in MODEL_PRECISIONS else by_dtype.get(name) or _OTHER_NAMES.get(name, "")
