"""Several runs over parts of the zoo on one commit → the evidence of one run.

    python -m benchmarks.zoo_join run1/zoo_gpu.json run2/zoo_gpu.json --out DIR

Enters: evidence of `zoo_sweep`: a run that was cut short, and one over what it had left. Leaves: one file, with every
model's row and the shares of all. Separate because runs of different trees or machines must never be joined.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import rounded
from benchmarks.zoo_sweep import figures_of

__all__ = ["join"]

EQUAL = ("schema", "name", "commit", "clean", "covers", "gpu", "driver", "versions")


def join(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join runs into the evidence of one.

    Args:
        runs: contents of evidence files, in the order in which they ran.

    Raises:
        ValueError: they differ in their commit, their machine or a library, or have tried a model twice.
    """
    first = runs[0]
    for run in runs[1:]:
        if differing := [name for name in EQUAL if run[name] != first[name]]:
            raise ValueError(f"runs: got others of {', '.join(differing)}; expected those of one tree and machine")
    rows: dict[str, Any] = {}
    for run in runs:
        if repeated := sorted(set(rows) & set(run["samples"]["models"])):
            raise ValueError(f"runs: got {repeated[0]!r} twice; expected each model once, so that none is chosen")
        rows |= run["samples"]["models"]
    waiting = sorted(set().union(*(run["samples"]["waiting"] for run in runs)) - set(rows))
    return {
        **first,
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "figures": {name: rounded(value) for name, value in sorted(figures_of(rows, len(waiting)).items())},
        "samples": {
            "options": [run["samples"]["options"] for run in runs],
            "models": dict(sorted(rows.items())),
            "waiting": waiting,
        },
    }


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="evidence files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the JSON")
    chosen = parser.parse_args()
    joined = join([json.loads(path.read_text(encoding="utf-8")) for path in chosen.runs])
    target = chosen.out / f"{joined['name']}.json"
    target.write_text(json.dumps(joined, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{target}: {joined['figures']['zoo.models']:g} models, {joined['figures']['zoo.pass_share']:.1%} passed")


if __name__ == "__main__":
    main()
