"""The nodes and modules of a model that are in a lower precision, and the reasons for the others, as data.

Enters: counts and reasons. Leaves: text and JSON. Separate because deployed modules carry reports, and need no ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["KeptModule", "PrecisionOutcome"]


@dataclass(frozen=True)
class KeptModule:
    """A torch module with nodes that stay in float32.

    Args:
        module: its path; "" is the model itself.
        nodes: how many of its nodes.
        reason: e.g. "reaches 3.1e+06, which float16 can't hold with room to spare".
    """

    module: str
    nodes: int
    reason: str

    def __str__(self) -> str:
        return f"'{self.module}' ({self.nodes} node{'s' if self.nodes != 1 else ''}): {self.reason}"


@dataclass(frozen=True, kw_only=True)
class PrecisionOutcome:
    """How a graph was lowered.

    Args:
        dtype: the requested precision, e.g. "fp16".
        nodes: nodes that compute with floating-point numbers.
        low: those of them that compute in the low precision; for a quantised one those with quantised inputs.
        kept: modules that stay in float32 by a rule, by request or to hold the budget.
        attempts: the graphs that a budget's search tried, a sentence each.
        errors: module path -> relative L2 error when it alone is low, largest first; None unless a search measured it.
    """

    dtype: str
    nodes: int
    low: int
    kept: tuple[KeptModule, ...] = ()
    attempts: tuple[str, ...] = ()
    errors: Mapping[str, float] | None = None

    def __str__(self) -> str:
        lines = [f"{self.dtype}: {self.low} of {self.nodes} nodes"]
        lines += [f"  float32 in {kept}" for kept in self.kept]
        lines += [f"  {attempt}" for attempt in self.attempts]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {**asdict(self), "errors": None if self.errors is None else dict(self.errors)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrecisionOutcome:
        """The inverse of `to_json`."""
        fields = dict(data)
        fields["kept"] = tuple(KeptModule(**module) for module in data["kept"])
        fields["attempts"] = tuple(data["attempts"])
        return cls(**fields)
