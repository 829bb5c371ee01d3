"""docs/models.md, made from the evidence of the zoo: `python -m benchmarks.zoo_table`, or with `--check`.

Enters: `zoo_cpu.json`, `zoo_gpu.json`, or one of them. Leaves: a table of every model, its axes, what came of it, and
why. Separate because the other tables are of figures, and this one is of reasons.
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
_COLUMNS = """
| model | axes | {backends} | reason |
|---|---|{rules}---|
"""


def read(results: Path) -> dict[str, Evidence]:
    """{name: content} of the evidence files that there are."""
    paths = {name: results / f"{name}.json" for name in _BACKENDS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def generate(found: Mapping[str, Evidence]) -> str:
    """Make the document from the content of the evidence files, by their names."""
    sentences = [_sentence(name, evidence) for name, evidence in found.items()]
    columns = _COLUMNS.format(backends=" | ".join(_BACKENDS[name] for name in found), rules="---|" * len(found))
    rows = {name: evidence["samples"]["models"] for name, evidence in found.items()}
    families: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for by_model in rows.values():
        for model, row in by_model.items():
            families.setdefault(row["family"], {}).setdefault(model, []).append(row)
    parts = [_HEAD, "\n".join(f"- {sentence}" for sentence in sentences), "\n"]
    for family, models in sorted(families.items()):
        parts += [f"\n## {family}\n", columns]
        parts += [_line(model, [rows[name].get(model) for name in found]) for model in sorted(models)]
    return "".join(parts)


def _sentence(name: str, evidence: Evidence) -> str:
    versions, figures = evidence["versions"], evidence["figures"]
    with_what = ", ".join(
        f"{library} {versions[library]}" for library in ("torch", "tensorrt_rtx") if library in versions
    )
    return (
        f"**{_BACKENDS[name]}** ({with_what}): {_SAID[name]}. "
        f"{figures['zoo.passed']} of {figures['zoo.models']} pass, {figures['zoo.pass_share']:.1%}."
    )


def _line(model: str, rows: list[Mapping[str, Any] | None]) -> str:
    known = [row for row in rows if row is not None]
    axes = ", ".join(_axis(axis, *limits) for axis, limits in known[0]["axes"].items())
    marks = " | ".join(_NOT_TRIED if row is None else str(row["outcome"]) for row in rows)
    reasons = [one_line_reason(row["message"]) for row in known if row["outcome"] != "passed"]
    return f"| `{model}` | {axes} | {marks} | {reasons[0] if reasons else ''} |\n"


def _axis(name: str, low: int, high: int, step: int) -> str:
    return f"{name} {low}..{high}" + (f" by {step}" if step > 1 else "")


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the document says anything else")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    chosen = parser.parse_args()
    found = read(chosen.results)
    if not found:
        sys.exit(f"{chosen.results}: got no evidence of the zoo; run `make zoo` or `make gpu-zoo`")
    made = generate(found)
    if not chosen.check:
        chosen.document.write_text(made, encoding="utf-8")
    elif not chosen.document.exists() or chosen.document.read_text(encoding="utf-8") != made:
        sys.exit(
            f"{chosen.document.name}: got another table than the evidence gives; run `python -m benchmarks.zoo_table`"
        )


if __name__ == "__main__":
    main()
