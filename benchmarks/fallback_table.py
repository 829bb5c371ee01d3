"""The figures of docs/fallback.md, made from the evidence by `python -m benchmarks.table`.

Enters: fallback.json. Leaves: the text between the page's marks; nothing without the evidence. Separate because the
page is for readers who ask what parts cost, where `table` shows engines that are whole models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.fallback_models import OWN, PARTS
from benchmarks.table import TableError, origin_of, read_evidence

__all__ = ["generate"]

_WAYS = {"fallback='faster'": 'fallback="faster"', "torch.compile": "compile_if_faster"}


def generate(results: Path) -> str:
    """The text between the marks; "" without the evidence.

    Args:
        results: the folder of evidence.

    Raises:
        TableError: evidence is there, but a figure that is needed is not.
    """
    evidence = read_evidence(results / "fallback.json")
    if evidence is None:
        return ""
    try:
        costs = _costs(evidence["figures"])
        sentences = [f"Measured with {origin_of(evidence)} (`fallback.json`):", "", *costs, "", *_models(evidence)]
    except KeyError as error:
        raise TableError(f"fallback.json: {error} is missing") from None
    return "\n".join(sentences)


def _costs(figures: Mapping[str, float]) -> list[str]:
    """What a part costs beyond its engine and the operators between the parts."""
    calls = {
        name: max(figures[f"fallback.chain.{name}.host_us"], figures[f"fallback.chain.{name}.device_us"])
        for name in ("parts", "engines", "operators", "eager")
    }
    alone = calls["engines"] + calls["operators"]
    return [
        f"- A chain of {PARTS} engines, with an operator of PyTorch's behind each, takes {calls['parts']:.0f} µs as "
        f"one CUDA graph, and {calls['eager']:.0f} µs in eager. Its engines and operators, each timed alone, take "
        f"{alone:.0f} µs.",
        f"- With `cuda_graphs=False` a part costs {figures['boundary_no_graphs_us']:.0f} µs beyond them. Custom "
        "operators in the place of PyTorch's keep the chain from being one CUDA graph; then a part costs "
        f"{figures['boundary_custom_us']:.0f} µs.",
    ]


def _models(evidence: Mapping[str, Any]) -> list[str]:
    """Whole models beside eager: what was timed, what was refused for its time, and what could not be timed."""
    figures: Mapping[str, float] = evidence["figures"]
    samples: Mapping[str, Any] = evidence["samples"]
    ways: Mapping[str, str] = samples.get("ways") or dict.fromkeys(OWN, "fallback=True")
    rows = ["| model | way | time of a call, of eager's | in engines |", "|---|---|--:|--:|"]
    for name in sorted(ways):
        share = figures.get(f"fallback.{name}.engine_share")
        in_engines = "" if share is None else f"{100 * share:.0f} %"
        way = _WAYS.get(ways[name], ways[name])
        rows.append(f"| {name} | `{way}` | {figures[f'fallback.{name}.ratio_to_eager']:.2f} | {in_engines} |")
    notes = [
        f"- {name} is refused: {reason.partition('; expected')[0]}." for name, reason in samples["refused"].items()
    ]
    notes += [f"- {name} was not timed: {reason}." for name, reason in samples.get("failed", {}).items()]
    return [*rows, *([""] if notes else []), *sorted(notes)]
