"""Whole float32 models in every precision: how right the engine is, how much of it is low, and how fast.

    python -m benchmarks.precision --out DIR

Enters: a GPU. Leaves: precision.json. Every model is deployed in each precision by a process of its own, several at a
time, since most of that is the CPU's work; then the engines of a model are timed side by side in one process, with
nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import _script
from benchmarks._worker import Cores, answer
from benchmarks.evidence import Evidence
from benchmarks.models import listed
from benchmarks.zoo import FLOATS

__all__ = ["PRECISIONS", "main"]

COVERS = (
    "core",
    "trt",
    "artifact",
    "deployed",
    "capture",
    "exporter",
    "onnx_graph",
    "builder",
    "precision",
    "parity",
    "deploy_steps",
)  # of the package: what the figures depend on
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8")
BATCHES = (1, 8)
COMPARED_AT = 8  # the batch size of speedup_over_fp32
CORES = 2  # for each deploying process: most of what it does is one thread's work
WORKER = "benchmarks.precision_worker"


class Run:
    """The benchmark of some models.

    Args:
        evidence: takes the figures.
        options: the script's.
        folder: where the engines go.
    """

    def __init__(self, evidence: Evidence, options: argparse.Namespace, folder: Path) -> None:
        self.evidence, self.options, self.folder = evidence, options, folder
        self.failures: list[str] = []
        self.cores = Cores(len(os.sched_getaffinity(0)) // CORES)

    def __call__(self) -> None:
        jobs = [(model, precision) for model in self.options.models for precision in PRECISIONS]
        with ThreadPoolExecutor(self.cores.count) as pool:
            built = dict(zip(jobs, pool.map(lambda job: self.deploy(*job), jobs), strict=True))
        models = self.options.models
        self.times({model: [word for word in PRECISIONS if built[model, word]] for model in models})
        for model in models:
            self.speedups(model)
        if self.failures:  # last, so that the file of the failed run has all that did not fail
            raise RuntimeError("\n".join(self.failures))

    def deploy(self, model: str, precision: str) -> bool:
        """Deploy and save; False, with the reason kept, for what is refused."""
        words = ["deploy", model, precision, str(self.folder / f"{model}.{precision}")]
        try:
            with self.cores.share() as cores:
                found = answer(WORKER, words, cores=cores)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.failures.append(f"{model}.{precision}: {error}")
            return False
        name = f"{model}.{precision}"
        print(f"{name}: after {self.evidence.elapsed_s:.0f} s; {found['told'] or found['refused']}", flush=True)
        self.evidence.samples.setdefault("deployed", {})[name] = found["told"]
        if "refused" in found:
            self.evidence.samples.setdefault("left_out", {})[name] = found["refused"]
            return False
        for figure, value in found["figures"].items():
            self.evidence.figure(f"{name}.{figure}", value)
        return True

    def times(self, precisions: Mapping[str, Sequence[str]]) -> None:
        """Time the engines of all models, in a process."""
        wanted = {model: words for model, words in precisions.items() if words}
        batches = ",".join(map(str, BATCHES))
        words = ["time", json.dumps(wanted), batches, str(self.options.rounds), str(self.folder)]
        try:
            found = answer(WORKER, words)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.failures.append(str(error))
            return
        self.failures += found["failures"]
        for figure, value in found["figures"].items():
            self.evidence.figure(figure, value)

    def speedups(self, model: str) -> None:
        figures: Mapping[str, float] = dict(self.evidence.figures)
        base = figures.get(f"{model}.fp32.b{COMPARED_AT}.device_us")
        for precision in PRECISIONS:
            here = figures.get(f"{model}.{precision}.b{COMPARED_AT}.device_us")
            if base and here:
                self.evidence.figure(f"{model}.{precision}.speedup_over_fp32", base / here)


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Run(evidence, options, Path(folder))()


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--models", type=listed(tuple(FLOATS)), default=",".join(FLOATS), help="which models")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each interleaved measurement")
    _script.run("precision", body, parser, COVERS)


if __name__ == "__main__":
    main()
