"""docs/operators.md, made from the evidence of the operators: `python -m benchmarks.operator_table`, or with `--check`.

Enters: `operators.json`. Leaves: a table of every operator, whether it becomes an engine, and why not. Separate because
the other tables stand in the README, between marks.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence import REPOSITORY

__all__ = ["DOCUMENT", "EVIDENCE", "generate", "one_line_reason"]

EVIDENCE = REPOSITORY / "benchmarks" / "results" / "operators.json"
DOCUMENT = REPOSITORY / "docs" / "operators.md"

_MARKS = {"right": "yes", "refused": "refused", "wrong": "wrong"}
_NO_SAMPLE = "–"
_FACTS = re.compile(r"got (?P<got>.+?); expected ", re.DOTALL)
_LONGEST_REASON = 160
_HEAD = """# Operators

Made by `python -m benchmarks.operator_table` from `benchmarks/results/operators.json`; don't edit it.

PyTorch's own samples of its operators (OpInfo, torch {torch}) were exported, compared with PyTorch on ONNX Runtime, and
built by TensorRT-RTX {rtx}. Of {cases} cases {share:.1%} become an engine. **static**: fixed shapes; **dynamic**: the
leading dimension is an axis; {no_sample}: PyTorch has no sample that fits. A refusal names the operator and the line in
the model. The table shows one sample of each operator: another dtype or option of it may be refused.

| operator | static | dynamic | reason |
|---|---|---|---|
"""


def generate(evidence: Mapping[str, Any]) -> str:
    """Make the document from the content of `operators.json`."""
    samples = evidence["samples"]
    outcomes: dict[str, dict[str, Mapping[str, Any]]] = {}
    for case, outcome in samples["outcomes"].items():
        name, _, shape = case.partition(" (")
        outcomes.setdefault(name, {})[shape.rstrip(")")] = outcome
    head = _HEAD.format(
        torch=evidence["versions"]["torch"].partition("+")[0],
        rtx=evidence["versions"]["tensorrt_rtx"],
        cases=evidence["figures"]["operators.cases"],
        share=evidence["figures"]["operators.pass_share"],
        no_sample=_NO_SAMPLE,
    )
    rows = [_row(name, outcomes[name], samples["never"].get(name, "")) for name in sorted(outcomes)]
    return head + "\n".join(rows) + "\n"


def _row(name: str, by_shape: Mapping[str, Mapping[str, Any]], never: str) -> str:
    marks = [_mark(by_shape.get(shape)) for shape in ("static", "dynamic")]
    failed = [outcome for outcome in by_shape.values() if outcome["outcome"] != "right"]
    reason = (never or one_line_reason(failed[0]["detail"])) if failed else ""
    return f"| `{name}` | {' | '.join(marks)} | {reason} |"


def _mark(outcome: Mapping[str, Any] | None) -> str:
    return _NO_SAMPLE if outcome is None else _MARKS.get(outcome["outcome"], "fails")


def one_line_reason(detail: str) -> str:
    """What an error's text says that came, in one line of a table."""
    facts = _FACTS.search(detail)
    reason = " ".join((facts["got"] if facts else detail).split()).replace("|", "\\|")
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 1]}…"


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the document says anything else")
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    chosen = parser.parse_args()
    made = generate(json.loads(chosen.evidence.read_text(encoding="utf-8")))
    if not chosen.check:
        chosen.document.parent.mkdir(exist_ok=True)
        chosen.document.write_text(made, encoding="utf-8")
    elif chosen.document.read_text(encoding="utf-8") != made:
        name = chosen.document.name
        sys.exit(f"{name}: got another table than the evidence gives; run `python -m benchmarks.operator_table`")


if __name__ == "__main__":
    main()
