"""Engines in half precision that follow a float32 model in training: how exact, how fast, beside building anew.

    python -m benchmarks.refit --out DIR

Enters: a GPU. Leaves: refit.json. Each model has a process of its own. ResNet-50 runs alone, and is also compared with
other ways; the rest run several at a time, as most of a deploy is the CPU's work, so their refits are timed on a busy
machine.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import _script
from benchmarks._worker import Cores, answer
from benchmarks.evidence import Evidence
from benchmarks.models import listed
from benchmarks.zoo import REFITTED

__all__ = ["main"]

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
    "deploy.py",
)  # of the package: what the figures depend on
COMPARED = "resnet50"


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
        self.together = [model for model in options.models if model != COMPARED]
        self.cores = Cores(len(self.together))

    def __call__(self) -> None:
        if COMPARED in self.options.models:
            self.follow(COMPARED, "")
            place = str(self.folder / COMPARED)
            self.work(["peers", COMPARED, place], "")
            self.work(["again", COMPARED, place], "")
            self.work(["again", COMPARED, place, "--keyed"], "")
            figures = self.evidence.figures
            if {"resnet50.deploy_s", "resnet50.refit_ms"} <= figures.keys():
                speedup = 1e3 * figures["resnet50.deploy_s"] / figures["resnet50.refit_ms"]
                self.evidence.figure("resnet50.refit_speedup_over_deploy", speedup)
        with ThreadPoolExecutor(self.cores.count) as pool:
            list(pool.map(self.follow_beside, self.together))
        if self.failures:  # last, so that the file of the failed run has all that did not fail
            raise RuntimeError("\n".join(self.failures))

    def follow_beside(self, model: str) -> None:
        with self.cores.share() as cores:
            self.follow(model, cores)

    def follow(self, model: str, cores: str) -> None:
        self.work(["follow", model, str(self.folder / model), str(self.options.steps)], cores)

    def work(self, words: Sequence[str], cores: str) -> None:
        try:
            found = answer("benchmarks.refit_worker", words, cores=cores)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.failures.append(str(error))
            return
        print(f"{' '.join(words)}: after {self.evidence.elapsed_s:.0f} s; {found}", flush=True)
        for figure, value in found.items():
            self.evidence.figure(f"{words[1]}.{figure}", value)


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Run(evidence, options, Path(folder))()


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--models", type=listed(tuple(REFITTED)), default=",".join(REFITTED), help="which models")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps, with a refit after each")
    _script.run("refit", body, parser, COVERS)


if __name__ == "__main__":
    main()
