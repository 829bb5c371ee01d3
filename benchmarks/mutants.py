"""Strength of the test suite: how many small faults in the package do the nearest tests notice?

    python -m benchmarks.mutants                        the lines that differ from main
    python -m benchmarks.mutants --base main~5          the lines that have changed since
    python -m benchmarks.mutants --all --sample 300     a sample of the whole package
    python -m benchmarks.mutants --files torch2engine/core/spec.py

Enters: the package and its tests. Leaves: `mutants.json`: faults tried, and the share that tests noticed. Needs no GPU.
Apart from the tests because it takes minutes to hours.

Each mutant runs in a copy of the tree, never in the checkout. The tests that reach the fault run, up to the first
failure: `reach` knows them from a run under a recorder, which takes some minutes where the map is missing. Survivors
that are no weakness stand in `accepted_mutants.json` with the reason. Files that run on a GPU alone are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks._script import options, run
from benchmarks.evidence import REPOSITORY, Evidence
from benchmarks.mutant_laboratory import Laboratory, Mutant, Outcome
from benchmarks.mutations import mutations_of
from benchmarks.reach import ReachMap

__all__ = ["ACCEPTED", "all_mutants", "changed_lines", "chosen_mutants", "is_accepted"]

ACCEPTED = REPOSITORY / "benchmarks" / "accepted_mutants.json"
PACKAGE = "torch2engine"
WANTED_MUTANTS = 300
WANTED_SHARE = 0.9

# Nothing of these runs without a GPU: tests/gpu holds them.
ON_A_GPU = (
    *("torch2engine/deployed/trt/", "torch2engine/trt/cuda_graph.py", "torch2engine/trt/engine.py"),
    *("torch2engine/trt/engine_agreement.py", "torch2engine/trt/foreign_plan.py", "torch2engine/trt/live_engines.py"),
    *("torch2engine/serving/processor/cuda.py", "torch2engine/serving/processor/processor_session.py"),
)


def all_mutants(root: Path, lines: dict[str, Collection[int]] | None = None) -> list[Mutant]:
    """The mutants of the package.

    Args:
        root: the repository.
        lines: file -> the lines in which a fault may begin; None for all of the package.
    """
    found: list[Mutant] = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        file = str(path.relative_to(root))
        if file.startswith(ON_A_GPU) or (lines is not None and file not in lines):
            continue
        source = path.read_text(encoding="utf-8")
        text = source.splitlines()
        for mutation in mutations_of(source):
            if lines is None or mutation.line in lines[file]:
                found.append(Mutant(file, text[mutation.line - 1].strip(), mutation))
    return found


def changed_lines(root: Path, base: str) -> dict[str, Collection[int]]:
    """The package's lines that the working tree has and a commit has not: file -> numbers."""
    command = ["git", "-C", str(root), "diff", "--unified=0", base, "--", PACKAGE]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Collection[int]] = {}
    file = ""
    for line in text.splitlines():
        if line.startswith("+++ "):
            file = line.removeprefix("+++ b/")
        elif match := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            first = int(match[1])
            found[file] = {*found.get(file, ()), *range(first, first + int(match[2] or 1))}
    return found


def chosen_lines(arguments: argparse.Namespace) -> dict[str, Collection[int]] | None:
    """The lines that the options name, as `all_mutants` takes them."""
    if arguments.all:
        return None
    if arguments.files:
        texts = {file: (REPOSITORY / file).read_text(encoding="utf-8") for file in arguments.files}
        return {file: range(1, len(text.splitlines()) + 1) for file, text in texts.items()}
    return changed_lines(REPOSITORY, arguments.base)


def is_accepted(mutant: Mutant, accepted: Sequence[dict[str, str]]) -> bool:
    """Whether the committed list says why no test need notice it."""
    key = {"file": mutant.file, "line": mutant.source, "kind": mutant.mutation.kind}
    return any(key.items() <= entry.items() for entry in accepted)


def chosen_mutants(found: Sequence[Mutant], size: int, seed: int) -> list[Mutant]:
    """Some mutants, in random order: a run that is cut is a smaller sample.

    A hash of each one's text chooses, and not its place. So a change of the package leaves the sample as it is, except
    for the lines that have changed.

    Args:
        found: all of them.
        size: how many to choose; 0 for all.
        seed: another seed gives another sample.
    """

    def order(mutant: Mutant) -> str:
        mutation = mutant.mutation
        text = f"{seed} {mutant.file} {mutant.source} {mutation.column} {mutation.kind} {mutation.text}"
        return hashlib.sha256(text.encode()).hexdigest()

    return sorted(found, key=order)[: size or None]


def outcomes(mutants: Sequence[Mutant], reach: ReachMap, workers: int) -> Iterator[tuple[Mutant, Outcome]]:
    """Try mutants; give each with what became of it."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        laboratory = Laboratory(REPOSITORY, reach, Path(folder), workers)
        yield from zip(mutants, pool.map(laboratory.try_mutant, mutants), strict=True)
        laboratory.close()


def measure(evidence: Evidence, arguments: argparse.Namespace) -> None:
    """Try the mutants, and record what survived."""
    os.nice(arguments.nice)
    os.environ["OMP_NUM_THREADS"] = "1"
    accepted: list[dict[str, str]] = json.loads(ACCEPTED.read_text(encoding="utf-8"))
    counts = {"killed": 0, "killed by time": 0, "survived": 0, "uncovered": 0}
    survivors: list[str] = []
    explained: list[str] = []
    reach = ReachMap(REPOSITORY)
    print("recording the test files that have changed", flush=True)
    reach.renew(arguments.workers, arguments.files or None)
    found = all_mutants(REPOSITORY, chosen_lines(arguments))
    chosen = chosen_mutants(found, arguments.sample, arguments.seed)
    for mutant, outcome in outcomes(chosen, reach, arguments.workers):
        counts[outcome.name] += 1
        if not outcome.name.startswith("killed"):
            (explained if is_accepted(mutant, accepted) else survivors).append(f"{mutant} ({outcome.name})")
        tried = sum(counts.values())
        print(f"{tried} {outcome.name}: {mutant}  [{outcome.test}]", flush=True)
        evidence.figure("mutants.tried", tried)
        evidence.figure("mutants.killed_share", (counts["killed"] + counts["killed by time"]) / tried)
        evidence.samples |= {"outcomes": counts, "survivors": survivors, "accepted_survivors": explained}
        evidence.write_draft()
    if arguments.all:
        assert evidence.figures["mutants.tried"] >= WANTED_MUTANTS, f"fewer than {WANTED_MUTANTS} mutants"
        assert evidence.figures["mutants.killed_share"] >= WANTED_SHARE, f"less than {WANTED_SHARE:.0%} were noticed"
    assert not survivors or arguments.all, f"{len(survivors)} survived; strengthen a test, or accept it with a reason"


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--base", default="main", help="commit whose differences to the working tree are mutated")
    parser.add_argument(
        "--files", nargs="*", default=[], help="all of these instead; only tests near to them are recorded"
    )
    parser.add_argument("--all", action="store_true", help="the whole package instead")
    parser.add_argument("--sample", type=int, default=0, help="try so many of them, chosen at random; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="copies of the tree")
    parser.add_argument("--nice", type=int, default=15, help="added to the process's niceness")
    run("mutants", measure, parser, covers=[""], needs_gpu=False)
