"""One way to run a model that deploy() tried, with its times and why it was taken or not: the choice, and a table.

Enters: times and reasons. Leaves: a `TriedCandidate`, as a row of text or as JSON values. Separate because whatever is
timed to find the fastest is chosen by one rule, and the report shows it in one form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["TriedCandidate", "rank", "tried_rows"]

_FASTER = 1.05  # times: less is noise


@dataclass(frozen=True, kw_only=True)
class TriedCandidate:
    """One way to run a model, beside others.

    Args:
        name: e.g. "TensorRT-RTX 1.6.1.120" or "torch.compile in a CUDA graph".
        microseconds: {sizes in words, e.g. "batch 8": time of a call}; empty if it was not timed. On a GPU a time is
            from the end of one call to the end of the next.
        is_chosen: whether it answers now.
        reason: a clause that says why it was chosen, or why not.
    """

    name: str
    microseconds: Mapping[str, float] = field(default_factory=dict[str, float])
    is_chosen: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TriedCandidate:
        """The inverse of `to_json`."""
        return cls(
            name=str(data["name"]),
            microseconds={str(case): float(taken) for case, taken in data["microseconds"].items()},
            is_chosen=bool(data["is_chosen"]),
            reason=str(data["reason"]),
        )


def tried_rows(tried: Sequence[TriedCandidate]) -> list[tuple[str, ...]]:
    """The cells of a table, its head first: name, the time of a call in every case, and the outcome."""
    cases = list(dict.fromkeys(case for one in tried for case in one.microseconds))
    rows: list[tuple[str, ...]] = [("tried", *(f"µs at {case}" if case else "µs a call" for case in cases), "outcome")]
    for one in tried:
        times = [f"{one.microseconds[case]:.4g}" if case in one.microseconds else "-" for case in cases]
        rows.append((one.name, *times, f"chosen: {one.reason}" if one.is_chosen else one.reason))
    return rows


def rank(times: Mapping[str, Mapping[str, float]], remarks: Mapping[str, str]) -> list[TriedCandidate]:
    """Choose among candidates by the geometric mean of their times; the first one wins within 5 %.

    Args:
        times: {name: {case: µs of a call}}, with the same cases for all.
        remarks: {name: a clause about how it runs, or ""}.

    Returns:
        all of them with the reason, in the same order; one is chosen.
    """
    means = {name: _geometric_mean(list(taken.values())) for name, taken in times.items()}
    first = next(iter(means))
    fastest = min(means, key=lambda name: means[name])
    chosen = fastest if means[first] > _FASTER * means[fastest] else first
    ranked: list[TriedCandidate] = []
    for name, taken in times.items():
        if len(times) == 1:
            reason = "nothing else can take its place"
        elif name != chosen:
            reason = f"{means[name] / means[chosen]:.2f} times the time of {chosen}"
        elif name != first:
            reason = f"{means[first] / means[name]:.2f} times as fast as {first}"
        else:
            reason = "the fastest" if fastest == first else f"no other one is faster by more than {_FASTER - 1:.0%}"
        reason = "; ".join(filter(None, [reason, remarks[name]]))
        ranked.append(TriedCandidate(name=name, microseconds=dict(taken), is_chosen=name == chosen, reason=reason))
    return ranked


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else 1.0
