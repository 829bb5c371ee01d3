"""What it costs to leave operators in PyTorch: a boundary of a part, and whole models in parts beside eager.

    python -m benchmarks.fallback --out DIR --workers 12

Enters: a GPU, and the evidence of the zoo on one, which names the models that no single engine answers. Leaves:
fallback.json. Every model has a process. All prepare at the same time; each is timed while nobody else works.

`boundary_us` is the time of a model in parts, less that of its engines alone and of its operators in PyTorch alone, for
each part. Its operators are PyTorch's own, which the default configuration holds in one CUDA graph with the engines, so
that it may be below 0. `boundary_no_graphs_us` is the same without any CUDA graph. `boundary_custom_us` is that of a
model with a custom operator, which the default configuration calls between the engines, and
`boundary_custom_graphs_us` with `cuda_graphs=True`.

`worst_ratio_to_eager` is over all models that deploy(fallback="faster") takes. `worst_ratio_to_eager_of_other_ways` is
over those that it can't take in parts (`not_in_parts` says why): by torch.compile with `compile_if_faster`, or with
engines for submodules. What is refused for its measured time stands in the samples with both times, and counts in
`fallback.refused`. A model that could not be timed stands there under "failed", and counts in `fallback.failed`: the
figures of all others are written, and the script ends with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _script
from benchmarks._worker import visible_devices
from benchmarks.evidence import Evidence
from benchmarks.fallback_models import OWN
from benchmarks.fallback_worker import BOUNDARY, FASTER
from benchmarks.phased_jobs import Job, environment_of, run_jobs
from benchmarks.zoo_fallback import PARTS

__all__ = ["SecondTry", "body", "main", "second_tries"]

COVERS = ("core", "trt", "artifact", "deployed", "exporter", "fallback")
ZOO = Path("benchmarks/results/zoo_gpu.json")


class Results:
    """Gathers what the jobs report.

    Args:
        evidence: takes figures and samples.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.ways: dict[str, str] = evidence.samples.setdefault("ways", {})
        self.refused: dict[str, str] = evidence.samples.setdefault("refused", {})
        self.not_in_parts: dict[str, str] = evidence.samples.setdefault("not_in_parts", {})
        self.left_in_pytorch: dict[str, list[str]] = evidence.samples.setdefault("left_in_pytorch", {})

    def take(self, job: Job, report: Mapping[str, Any]) -> None:
        """Take over a report, and write the draft."""
        for name, value in report.get("figures", {}).items():
            self.evidence.figure(name, value)
        self.ways.update(report.get("ways", {}))
        self.refused.update(report.get("refused", {}))
        self.not_in_parts.update(report.get("not_in_parts", {}))
        self.left_in_pytorch.update(report.get("left_in_pytorch", {}))
        self._summarise()
        self.evidence.write_draft()
        print(f"{self.evidence.elapsed_s:.0f} s {job.name}: {', '.join(report)}", flush=True)

    def take_failures(self, failures: Mapping[str, str]) -> None:
        """Let the evidence say which models are missing in its figures.

        Args:
            failures: name of a job -> why it failed, from the shortest reason to the last words of its process.
        """
        self.evidence.figure("fallback.failed", len(failures))
        self.evidence.samples["failed"] = {name: why.partition("\n")[0] for name, why in failures.items()}

    def _summarise(self) -> None:
        """Record the worst of what is there so far."""
        self.evidence.figure("fallback.refused", len(self.refused))
        found = {name: self.evidence.figures[f"fallback.{name}.ratio_to_eager"] for name in self.ways}
        faster = [ratio for name, ratio in found.items() if self.ways[name] == FASTER]
        others = [ratio for name, ratio in found.items() if self.ways[name] != FASTER]
        for figure, ratios in (("worst_ratio_to_eager", faster), ("worst_ratio_to_eager_of_other_ways", others)):
            if ratios:
                self.evidence.figure(figure, max(ratios))


@dataclass(frozen=True)
class SecondTry:
    """How a model of the zoo was answered that no single engine answers.

    Args:
        way: as in `zoo_fallback`.
        wrong: what was said of its single engine, or of its parts, if these were wrong; then it is no use to try parts
            again. "" otherwise.
    """

    way: str
    wrong: str = ""


def second_tries(zoo: Mapping[str, Any]) -> dict[str, SecondTry]:
    """The models that a second try answered; those that take longest come first.

    Args:
        zoo: evidence of `zoo_sweep`.
    """
    rows = {name: row for name, row in zoo["samples"]["models"].items() if "fallback" in row}
    passed = [name for name, row in rows.items() if row["fallback"]["outcome"] == "passed"]
    passed.sort(key=lambda name: -sum(rows[name]["fallback"]["seconds"].values()))
    return {name: SecondTry(rows[name]["fallback"]["way"], _wrong(rows[name])) for name in passed}


def _wrong(row: Mapping[str, Any]) -> str:
    said: str = row["message"] if row["outcome"] == "wrong" else row["fallback"].get("refused", {}).get(PARTS, "")
    return said.partition("\n")[0]


def jobs_of(options: argparse.Namespace, devices: Sequence[str]) -> list[Job]:
    """A process for each model. All are timed on one GPU, one after the other."""
    tries = second_tries(json.loads(options.zoo.read_text(encoding="utf-8")))
    # The short ones have their turns first: a run that is cut has the figures that are promised.
    subjects = dict.fromkeys((BOUNDARY, *OWN), SecondTry("")) | {f"zoo.{name}": one for name, one in tries.items()}
    place = devices[0] if devices else ""
    threads = max(1, len(os.sched_getaffinity(0)) // options.workers)
    words = {"--device": options.device, "--rounds": options.rounds}
    jobs: list[Job] = []
    for subject, one in subjects.items():
        command = [sys.executable, "-m", "benchmarks.fallback_worker", f"--subject={subject}", f"--way={one.way}"]
        command.append(f"--wrong={one.wrong}")
        command += [f"{option}={value}" for option, value in words.items()]
        environment = environment_of(place, threads) if options.device == "cuda" else {"OMP_NUM_THREADS": "1"}
        jobs.append(Job(subject, command, place, environment))
    return [job for job in jobs if not options.only or job.name in options.only.split(",")]


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    """Measure everything.

    Args:
        evidence: takes the figures.
        options: the script's.

    Raises:
        RuntimeError: no model could be timed.
    """
    results = Results(evidence)
    devices = visible_devices(os.environ) if options.device == "cuda" else ()
    failures = run_jobs(
        jobs_of(options, devices), options.workers, options.prepare, options.limit, results.take, options.turns
    )
    results.take_failures(failures)
    for name, why in failures.items():
        print(f"{name}: {why}", flush=True)
    if failures and not any(name.endswith(("_us", "ratio_to_eager")) for name in evidence.figures):
        raise RuntimeError("nothing was timed")


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="a GPU, or ONNX Runtime on the CPU")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="evidence that names the models of the zoo")
    parser.add_argument("--only", default="", help="jobs with commas, e.g. boundary,chain,zoo.fcos; all if empty")
    parser.add_argument("--workers", type=int, default=12, help="processes that prepare at the same time")
    parser.add_argument("--prepare", type=float, default=600, help="seconds for all of them to prepare")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one process to be timed")
    parser.add_argument("--turns", type=float, default=300, help="seconds for all of them to be timed")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each interleaved measurement")
    chosen = parser.parse_args()
    _script.run("fallback", body, parser, COVERS, needs_gpu=chosen.device == "cuda")
    failed = json.loads((chosen.out / "fallback.json").read_text(encoding="utf-8"))["samples"]["failed"]
    if failed:  # the file stands, and says so
        sys.exit("\n".join(f"{name}: {why}" for name, why in failed.items()))


if __name__ == "__main__":
    main()
