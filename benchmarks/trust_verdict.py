"""Why a model was refused: for its rounding, because its precision can't hold it, or for a fault of the engine.

Enters: what `benchmarks.trust_worker` found for a model in a precision. Leaves: a verdict, with its evidence. Apart
because a wrong rule here would hide a false refusal, so it has tests of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["engine_fault", "is_false_refusal"]

LARGEST_HALF_ERROR = 0.1  # relative L2; beyond it values are lost, and that is not rounding


@dataclass(frozen=True)
class FaultRule:
    """From where on the error of an engine is no rounding of its precision; errors are relative L2.

    Args:
        twin: the comparison of the same graph in ONNX Runtime, rounded like the engine.
        times: an engine is faulty only beyond so many times the twin's error.
        error: and only beyond this one, whatever the twin's. A twin that is exact by luck proves nothing.
    """

    twin: str
    times: float
    error: float


# fp16: the twin rounds after every operator, and an engine rounds less often, since it fuses operators.
# fp32: TensorRT-RTX's products have about 100 times the error of ONNX Runtime's, and none of 75 models was 1e-3 off.
RULES = {"fp32": FaultRule("onnxruntime", 1000.0, 1e-2), "fp16": FaultRule("strict", 10.0, 5e-2)}


def engine_fault(found: Mapping[str, Any], precision: str) -> str:
    """Tell what shows that a refused engine is wrong by more than any rounding.

    The judge's own tolerance takes no part. What decides is the same graph in ONNX Runtime: its errors show how far
    rounding moves this model. Without such a twin, or if it is not finite itself, nothing is shown.

    Args:
        found: the model's figures in this precision.
        precision: "fp32" or "fp16".

    Returns:
        the evidence; "" where the refusal may be one for rounding.
    """
    rule = RULES[precision]
    twin, engine = found.get(rule.twin), found.get("engine")
    if found["verdict"] != "refused" or twin is None or engine is None or twin["nonfinite"]:
        return ""
    beside = f"{twin['error']:.2g} off in ONNX Runtime ({rule.twin})"
    if engine["nonfinite"]:
        return f"{engine['nonfinite']} elements that are not finite in the engine; none, and {beside}"
    is_wrong = engine["error"] > max(rule.error, rule.times * twin["error"])
    return f"{engine['error']:.2g} off in the engine; {beside}" if is_wrong else ""


def is_false_refusal(found: Mapping[str, Any], precision: str) -> bool:
    """Tell whether a model was refused though its precision can hold it and no fault of the engine is shown.

    PyTorch's own half model shows what fp16 can hold.
    """
    can_be_held = found.get("half_model", 0.0) <= LARGEST_HALF_ERROR
    return found["verdict"] == "refused" and can_be_held and not engine_fault(found, precision)
