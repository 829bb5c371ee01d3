"""docs/models.md, made from the evidence of the zoo: `python -m benchmarks.zoo_table`, or with `--check`.

Enters: `zoo_cpu.json` and `zoo_gpu.json`, as far as they exist. Leaves: a table of every model, its axes, what came of
it, why, and which way it runs in parts; or a page that says that nothing is measured. Separate because the other tables
are of figures, and this one is of reasons.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence import REPOSITORY
from benchmarks.operator_table import one_line_reason

__all__ = ["DOCUMENT", "generate", "read"]

RESULTS = REPOSITORY / "benchmarks" / "results"
DOCUMENT = REPOSITORY / "docs" / "models.md"

Evidence = Mapping[str, Any]

_BACKENDS = {"zoo_cpu": "CPU", "zoo_gpu": "GPU"}
_SAID = {
    "zoo_cpu": "exported, compared with PyTorch on ONNX Runtime, and built by TensorRT-RTX",
    "zoo_gpu": "deployed in float32, and the engine compared with PyTorch",
}
_NOT_TRIED = "–"
_HEAD = """# Models

Made by `python -m benchmarks.zoo_table` from the evidence of `make zoo` and `make gpu-zoo`; don't edit it.

Well-known architectures with random weights, each with the axes that its users leave free: `batch 1..4` takes every
batch from 1 to 4. Each was compared at the least, the usual and the largest size of its axes, and at one between.

"""
_NOTHING = """No run is recorded yet, so nothing is claimed here. `make zoo` and `make gpu-zoo` measure.
"""
_SECOND_TRY = """
A model that `deploy` refused was tried again: with `fallback=True` if operators were the reason, and then by
`torch.compile(backend="torch2engine")`. It was compared at the same sizes. The percentage is the share of a call's time
that is spent in engines; see [What no engine takes](fallback.md).
"""
_COLUMNS = """
| model | axes | {backends} | reason | second try |
|---|---|{rules}---|---|
"""


def read(results: Path) -> dict[str, Evidence]:
    """{name: content} of the evidence files that there are."""
    paths = {name: results / f"{name}.json" for name in _BACKENDS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def generate(found: Mapping[str, Evidence]) -> str:
    """Make the document from the content of the evidence files, by their names."""
    if not found:
        return _HEAD + _NOTHING
    sentences = [_sentence(name, evidence) for name, evidence in found.items()]
    columns = _COLUMNS.format(backends=" | ".join(_BACKENDS[name] for name in found), rules="---|" * len(found))
    rows = {name: evidence["samples"]["models"] for name, evidence in found.items()}
    families: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for by_model in rows.values():
        for model, row in by_model.items():
            families.setdefault(row["family"], {}).setdefault(model, []).append(row)
    parts = [_HEAD, "\n".join(f"- {sentence}" for sentence in sentences), "\n", _SECOND_TRY]
    for family, models in sorted(families.items()):
        parts += [f"\n## {family}\n", columns]
        parts += [_line(model, {name: rows[name].get(model) for name in found}) for model in sorted(models)]
    return "".join(parts)


def _sentence(name: str, evidence: Evidence) -> str:
    versions, figures = evidence["versions"], evidence["figures"]
    with_what = ", ".join(
        f"{library} {versions[library]}" for library in ("torch", "tensorrt_rtx") if library in versions
    )
    with_fallback = figures["zoo.passed"] + figures["zoo.passed_with_fallback"]
    waiting = f" {figures['zoo.waiting']} were not tried." if figures["zoo.waiting"] else ""
    return (
        f"**{_BACKENDS[name]}** ({with_what}): {_SAID[name]}. "
        f"{figures['zoo.passed']} of {figures['zoo.models']} pass, {figures['zoo.pass_share']:.1%}; "
        f"{with_fallback} with a second try, {figures['zoo.pass_share_with_fallback']:.1%}.{waiting}"
    )


def _line(model: str, rows: Mapping[str, Mapping[str, Any] | None]) -> str:
    known = {name: row for name, row in rows.items() if row is not None}
    axes = ", ".join(_axis(axis, *limits) for axis, limits in next(iter(known.values()))["axes"].items())
    marks = " | ".join(str(known[name]["outcome"]) if name in known else _NOT_TRIED for name in rows)
    reasons = [one_line_reason(row["message"]) for row in known.values() if row["outcome"] != "passed"]
    again = {name: row["fallback"] for name, row in known.items() if "fallback" in row}
    second_tries = "; ".join(f"{_BACKENDS[name]}: {_second_try(fallback)}" for name, fallback in again.items())
    return f"| `{model}` | {axes} | {marks} | {reasons[0] if reasons else ''} | {second_tries} |\n"


def _second_try(fallback: Mapping[str, Any]) -> str:
    if fallback["outcome"] != "passed":
        return f"`{fallback['way']}` {fallback['outcome']}"
    return f"`{fallback['way']}`, {fallback['engine_share']:.0%}"


def _axis(name: str, low: int, high: int, step: int) -> str:
    return f"{name} {low}..{high}" + (f" by {step}" if step > 1 else "")


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the document says anything else")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    chosen = parser.parse_args()
    made = generate(read(chosen.results))
    if not chosen.check:
        chosen.document.write_text(made, encoding="utf-8")
    elif not chosen.document.exists() or chosen.document.read_text(encoding="utf-8") != made:
        sys.exit(
            f"{chosen.document.name}: got another table than the evidence gives; run `python -m benchmarks.zoo_table`"
        )


if __name__ == "__main__":
    main()
