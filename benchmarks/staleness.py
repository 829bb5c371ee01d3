"""Which evidence no longer speaks for the tree, and new runs of what is named.

    python -m benchmarks.staleness                        lists every evidence file: current, or stale and since when
    python -m benchmarks.staleness call_overhead stress   runs these, on a GPU, and lists again

Enters: `benchmarks/results/` and git. Leaves: a list, and exit status 1 while a file is stale. Separate because a
change of the package must not make all figures worthless, and must not leave wrong ones unnoticed either.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence import REPOSITORY, WHOLE_PACKAGE

__all__ = ["Standing", "standing_of"]

RESULTS = REPOSITORY / "benchmarks" / "results"
# Evidence that `make` writes, with its target.
SUITES = {"gpu-tests": "gpu-test", "gpu2-tests": "gpu2-test", "zoo_cpu": "zoo", "zoo_gpu": "gpu-zoo"}


@dataclass(frozen=True)
class Standing:
    """Whether an evidence file speaks for the tree.

    Args:
        name: of the evidence file.
        commit: that it was measured on.
        reason: why it is stale; "" if it is not.
    """

    name: str
    commit: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name:<16} {self.commit[:8]}  " + (f"stale: {self.reason}" if self.reason else "current")


def standing_of(evidence: Mapping[str, Any], repository: Path) -> Standing:
    """Compare what an evidence file covers with the working tree.

    Args:
        evidence: the content of a file of `benchmarks/results/`.
        repository: a git checkout that has the evidence's commit.
    """
    commit = str(evidence["commit"])
    covers: Sequence[str] = evidence.get("covers", WHOLE_PACKAGE)
    if not evidence["clean"]:
        reason = "it was measured on a tree with uncommitted changes"
    else:
        git = ["git", "-C", str(repository), "diff", "--name-only", commit, "--", *covers]
        changed = subprocess.run(git, capture_output=True, text=True, check=False)
        files = changed.stdout.split()
        if changed.returncode != 0:
            reason = f"git does not know its commit ({changed.stderr.strip()})"
        elif files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            reason = f"{files[0]}{more} changed since"
        else:
            reason = ""
    return Standing(str(evidence["name"]), commit, reason)


def standings(results: Path, repository: Path) -> list[Standing]:
    """Every evidence file's standing, in the order of their names."""
    files = sorted(results.glob("*.json"))
    return [standing_of(json.loads(path.read_text(encoding="utf-8")), repository) for path in files]


def run(name: str, out: Path) -> None:
    """Measure one evidence file anew.

    Raises:
        SystemExit: the run failed.
    """
    suite = SUITES.get(name)
    command = (
        ["make", suite, f"RESULTS={out}"] if suite else [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)]
    )
    done = subprocess.run(command, cwd=REPOSITORY, check=False)
    if done.returncode:
        sys.exit(f"{name}: {' '.join(command)} ended with {done.returncode}")


def main(arguments: Sequence[str] | None = None) -> int:
    """List, after running what is named.

    Returns:
        the exit status: 1 while a file is stale.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="an evidence file to measure anew")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the evidence")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        run(name, chosen.out)
    found = standings(chosen.out, REPOSITORY)
    print("\n".join(map(str, found)) or "no evidence")
    return int(any(standing.reason for standing in found))


if __name__ == "__main__":
    sys.exit(main())
