"""How a model's time compares with that of other ways to run it, by the figures of `models`.

Enters: figures. Leaves: ratios, each below 1 where torch2engine is faster, and their geometric means. Separate because
the same figures come in piece by piece, from several processes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

__all__ = ["ratios_of"]

Figures = Mapping[str, float]

# Ratio -> pairs of ours and another way with the same promise; of several pairs the largest quotient counts.
RATIOS: dict[str, tuple[tuple[str, str], ...]] = {
    "ratio_to_eager": (("t2e_default", "eager"),),
    "ratio_to_eager_graph": (("t2e_static_graph", "eager_graph"),),
    "ratio_to_compile": (("t2e_default", "compile"), ("t2e_static_graph", "compile_reduce_overhead")),
    "ratio_to_tt": (("t2e_default", "torch_tensorrt"),),
    "ratio_to_tt_graph": (("t2e_default", "torch_tensorrt_graph"),),  # whose results last, too
}
SIZES = ("dynamic", "static")


def ratios_of(figures: Figures) -> dict[str, float]:
    """Ratios of GPU time.

    Args:
        figures: of models.json; a ratio is left out where one of its times is missing.

    Returns:
        "MODEL.bBATCH.RATIO" for each case; "geomean.RATIO", "largest.RATIO" and "cases.RATIO" over all of them; and
        "MODEL.dynamic_over_static", the largest of the model's batches.
    """
    found: dict[str, float] = {}
    cases = sorted({match[1] for name in figures if (match := re.match(r"(\w+\.b\d+)\.", name))})
    for ratio, pairs in RATIOS.items():
        of_cases: dict[str, float] = {}
        for case in cases:
            quotients = [value for pair in pairs if (value := _quotient(figures, case, *pair)) is not None]
            if quotients:
                of_cases[f"{case}.{ratio}"] = max(quotients)
        if of_cases:
            found |= of_cases
            found[f"geomean.{ratio}"] = _geometric_mean(of_cases.values())
            found[f"largest.{ratio}"] = max(of_cases.values())
            found[f"cases.{ratio}"] = len(of_cases)
    for case in cases:
        value = _quotient(figures, case, *SIZES)
        if value is not None:
            name = f"{case.partition('.')[0]}.dynamic_over_static"
            found[name] = max(value, found.get(name, 0.0))
    return found


def _quotient(figures: Figures, case: str, ours: str, other: str) -> float | None:
    """Our GPU time over another way's; None where one of them is missing."""
    times = [figures.get(f"{case}.{name}.device_us") for name in (ours, other)]
    return None if times[0] is None or times[1] is None else times[0] / times[1]


def _geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
