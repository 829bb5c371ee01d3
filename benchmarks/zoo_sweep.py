"""The zoo, model by model: how many become an engine with the axes that their users leave free, and why not.

    python -m benchmarks.zoo_sweep --backend cpu
    python -m benchmarks.zoo_sweep --backend gpu --workers 14 --only 'timm|resnet'

Enters: `tests/zoo`. Leaves: `zoo_cpu.json` or `zoo_gpu.json`: each model's outcome, and the shares. The file is written
anew after each model, so that a run that is cut short has left what it found. Apart from `trust`, which asks how far
answers are off: this one asks whether there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._script import options, require_gpu
from benchmarks._worker import visible_devices
from benchmarks.evidence import REPOSITORY, Evidence
from benchmarks.zoo_places import Places
from benchmarks.zoo_processes import METHODS, ZooProcesses
from benchmarks.zoo_worker import TryEntry, load_entries, row_of
from tests.zoo.entry import ZooEntry

__all__ = ["BACKENDS", "PRELOADED", "Study", "figures_of", "in_order", "seconds_of", "sweep"]

PRELOADED = ("benchmarks.zoo_libraries",)
STARTS = {"cpu": "forkserver", "gpu": "spawn"}  # a library that starts CUDA while it is imported can't be forked
BACKENDS = tuple(STARTS)
COVERS = (
    "torch2engine",
    "tests/zoo",
    *(f"benchmarks/zoo_{name}.py" for name in ("sweep", "worker", "trial", "fallback", "submodules")),
)
HISTORIES = tuple(REPOSITORY / "benchmarks" / "results" / f"zoo_{backend}.json" for backend in BACKENDS)
LIMIT_S = 120.0


def figures_of(rows: Mapping[str, Mapping[str, Any]], waiting: int = 0) -> dict[str, float]:
    """The figures of a run.

    Args:
        rows: {model: its row}. Those that the installed libraries lack count as absent, and in nothing else. A model
            that was right in a second try is still refused; "zoo.fallback_without_engine" counts those of them that
            PyTorch answers alone.
        waiting: models that were not tried yet.
    """
    counts = Counter(row["outcome"] for row in rows.values())
    models = counts.total() - counts["absent"]
    again = [row["fallback"] for row in rows.values() if "fallback" in row]
    right = [one for one in again if one["outcome"] == "passed"]
    return {
        "zoo.models": models,
        "zoo.passed": counts["passed"],
        "zoo.pass_share": counts["passed"] / max(models, 1),
        "zoo.pass_share_with_fallback": (counts["passed"] + len(right)) / max(models, 1),
        "zoo.passed_with_fallback": len(right),
        "zoo.fallback_without_engine": sum(not one["engines"] for one in right),
        "zoo.refused": counts["refused"],
        "zoo.wrong": counts["wrong"],
        "zoo.untyped": counts["untyped"] + counts["crashed"],
        "zoo.timeouts": counts["timeout"],
        "zoo.absent": counts["absent"],
        "zoo.waiting": waiting,
    }


def in_order(entries: Mapping[str, ZooEntry], seconds: Mapping[str, float]) -> list[str]:
    """The longest first, by an earlier run; before them those that none knows, one of each family in turn."""
    seen: Counter[str] = Counter()
    turn: dict[str, int] = {}
    for name, entry in entries.items():
        turn[name] = seen[entry.family]
        seen[entry.family] += 1
    return sorted(entries, key=lambda name: (name in seconds, -seconds.get(name, 0.0), turn[name]))


@dataclass(frozen=True)
class Study:
    """What a sweep asks of each model.

    Args:
        try_entry: gives the row of a model, in a process of its own.
        figures_of: gives the figures of all rows, and of the number of models that wait.
    """

    try_entry: TryEntry
    figures_of: Callable[[Mapping[str, Mapping[str, Any]], int], dict[str, float]]


DEPLOYED = Study(row_of, figures_of)


class Sweep:
    """A run over some models.

    Args:
        evidence: takes rows and figures.
        path: of the evidence file.
        names: the models in the order to try them.
        study: what is asked of each.
    """

    def __init__(self, evidence: Evidence, path: Path, names: Sequence[str], study: Study = DEPLOYED) -> None:
        self.evidence, self.path = evidence, path
        self.study = study
        self.waiting = list(names)
        self.rows: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()

    def record(self, name: str, row: Mapping[str, Any], family: str) -> None:
        """Take over a model's row, and write the file."""
        with self.lock:
            self.rows[name] = {"family": family, **row}
            self.waiting.remove(name)
            for figure, value in self.study.figures_of(self.rows, len(self.waiting)).items():
                self.evidence.figure(figure, value)
            self.evidence.samples["models"] = dict(sorted(self.rows.items()))
            self.evidence.samples["waiting"] = self.waiting
            self.evidence.write(self.path)
        said = f"{row['outcome']} {row.get('error', '')} {row['seconds']}"
        if "fallback" in row:
            said += f", {row['fallback']}"
        print(f"{self.evidence.elapsed_s:.0f} s {name}: {said}", flush=True)


def sweep(
    entries: Mapping[str, ZooEntry],
    evidence: Evidence,
    path: Path,
    chosen: argparse.Namespace,
    preloaded: Sequence[str],
    study: Study = DEPLOYED,
) -> dict[str, dict[str, Any]]:
    """Try every model, and write the evidence after each.

    Args:
        entries: what to try.
        evidence: takes rows and figures.
        path: of the evidence file.
        chosen: the script's options.
        preloaded: modules that the processes share.
        study: what is asked of each model.

    Returns:
        {model: its row}.
    """
    names = in_order(entries, seconds_of(chosen.history))
    run = Sweep(evidence, path, names, study)
    places = Places(chosen.workers, visible_devices(os.environ) if chosen.backend == "gpu" else ())
    processes = ZooProcesses(chosen.start or STARTS[chosen.backend], preloaded, study.try_entry)

    def work(name: str) -> None:
        with places.share() as place:
            row = processes.ask(name, chosen.backend, chosen.models, place, chosen.limit)
        run.record(name, row, entries[name].family)

    with ThreadPoolExecutor(places.count) as pool:
        list(pool.map(work, names))
    return run.rows


def seconds_of(histories: Sequence[Path]) -> dict[str, float]:
    """{model: seconds} of earlier runs; a later file counts more. What ended early says little, and is left out."""
    seconds: dict[str, float] = {}
    for history in histories:
        if history.exists():
            rows = json.loads(history.read_text(encoding="utf-8"))["samples"]["models"]
            ended = {name: row["seconds"] for name, row in rows.items() if row["outcome"] in ("passed", "timeout")}
            seconds |= {
                name: sum(took for phase, took in phases.items() if "." not in phase) for name, phases in ended.items()
            }
    return seconds


def main() -> None:
    """Run as a script."""
    parser = options(__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="ONNX Runtime and the builder, or a GPU")
    parser.add_argument("--workers", type=int, default=1, help="models at a time")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one model")
    parser.add_argument("--only", default="", help="regular expression of names and families")
    parser.add_argument("--models", default="tests.zoo.models", help="module with the entries, as `ZOO`")
    parser.add_argument("--start", choices=METHODS, help=f"how processes start; by default {STARTS}")
    parser.add_argument("--history", type=Path, nargs="*", default=HISTORIES, help="earlier runs: the longest go first")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes
    name = f"zoo_{chosen.backend}"
    if chosen.backend == "gpu":
        require_gpu()
    entries = chosen_entries(chosen.models, chosen.only)
    evidence = Evidence(COVERS)
    evidence.samples["options"] = {key: str(getattr(chosen, key)) for key in ("workers", "limit", "only", "models")}
    sweep(entries, evidence, chosen.out / f"{name}.json", chosen, PRELOADED)
    for figure, value in sorted(evidence.figures.items()):
        print(f"{figure} {value:g}")


def chosen_entries(models: str, pattern: str) -> dict[str, ZooEntry]:
    """The entries of a module whose name or family fits a pattern."""
    entries = load_entries(models)
    return {name: entry for name, entry in entries.items() if re.search(pattern, f"{name} {entry.family}")}


if __name__ == "__main__":
    main()
