"""Whether the judge can be trusted: no ordinary model is refused for rounding, and no planted fault passes.

    python -m benchmarks.trust --out DIR --processes 14
    python -m benchmarks.trust --out DIR --cpu --models mlp,gru,siren

Enters: a GPU, or with `--cpu` ONNX Runtime alone. Leaves: trust.json. Models have random weights, as a newcomer's have,
and are deployed in float32 and in fp16, each model in a process of its own. `samples` has the figures of each: how far
rounding moves its own answers, and how far every candidate is off. The factors of `core/precisions.py` come from these.
A refusal is false unless `trust_verdict` shows that the engine is faulty or the precision too narrow; what it shows is
in `samples` too.

No process runs longer than `--seconds` after the start. What was found until then is in trust.failed.json at any time,
which says that it is incomplete.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import _script
from benchmarks._worker import Cores, answer
from benchmarks.evidence import Evidence
from benchmarks.models import listed
from benchmarks.ordinary_models import ORDINARY
from benchmarks.trust_verdict import engine_fault, is_false_refusal

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
WORKER = "benchmarks.trust_worker"
CALLED_OFTEN = ("vit_b_16", "bert", "resnet50")
ENOUGH = 60  # models; as long as so many are deployed, some may be late
SHORTEST = 5.0  # seconds; no process finds anything in less
PRECISIONS = ("fp32", "fp16")
STAGES = ("onnxruntime", "strict", "lowered", "engine")


class _OutOfTime(RuntimeError):
    """The seconds of the whole run are over."""


class Run:
    """The study of some models and of all planted faults.

    Args:
        evidence: takes the figures.
        options: the script's.
    """

    def __init__(self, evidence: Evidence, options: argparse.Namespace) -> None:
        self.evidence, self.options = evidence, options
        self.cores = Cores(options.processes)
        self.lock = threading.Lock()  # on all that jobs find
        self.failures: list[str] = []
        self.late: list[str] = []  # models whose time was over
        self.found: dict[str, Any] = {}

    def __call__(self) -> None:
        device = "cpu" if self.options.cpu else "cuda"
        jobs = [] if self.options.cpu else [["calls", name] for name in CALLED_OFTEN]
        jobs += [["deploy", name, device, *self.options.precisions] for name in self.options.models]
        self.judge_faults()
        with ThreadPoolExecutor(self.cores.count) as pool:
            list(pool.map(self.work, jobs))  # in the order of the list, which has the longest first
        self.judge_models()
        self.evidence.samples["late"] = self.late
        if len(self.found) < min(ENOUGH, len(self.options.models)):
            self.failures += self.late
        if self.failures:  # last, so that the file of the failed run has all that did not fail
            raise RuntimeError("\n".join(self.failures))

    def work(self, words: list[str]) -> None:
        """Have a process do one job, and keep what it finds, or why it finds nothing."""
        try:
            with self.cores.share() as cores:
                found = answer(WORKER, words, cores=cores, timeout_s=self.seconds_for_one())
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{' '.join(words)}: FAILED after {self.evidence.elapsed_s:.0f} s; {str(error)[-300:]}", flush=True)
            is_late = isinstance(error, (subprocess.TimeoutExpired, _OutOfTime)) and words[0] == "deploy"
            with self.lock:
                (self.late if is_late else self.failures).append(f"{' '.join(words[:2])}: {str(error)[-600:]}")
            return
        print(f"{' '.join(words)}: after {self.evidence.elapsed_s:.0f} s; {found}", flush=True)
        with self.lock:
            if words[0] == "deploy":
                self.found[words[1]] = found
            else:
                self.evidence.figure(f"fp32.{words[1]}.worst_over_200_calls", found["worst"])
            self.evidence.samples["models"] = dict(sorted(self.found.items()))
            self.evidence.write_draft()

    def seconds_for_one(self) -> float:
        """How long the next process may run.

        Raises:
            _OutOfTime: no time is left.
        """
        left = self.options.seconds - self.evidence.elapsed_s
        if left < SHORTEST:
            raise _OutOfTime(f"not begun: the {self.options.seconds:g} s of --seconds are over")
        return min(self.options.timeout, left)

    def judge_models(self) -> None:
        """Count refusals, and record the largest error in units of the sensitivity for each stage and precision."""
        refused: list[str] = []
        faults: dict[str, str] = {}
        ratios: dict[str, float] = {}
        for name, precisions in self.found.items():
            for precision, found in precisions.items():
                if is_false_refusal(found, precision):
                    refused.append(f"{name} in {precision}: {found['reason']}")
                if fault := engine_fault(found, precision):
                    faults[f"{name} in {precision}"] = fault
                for stage in STAGES:
                    if stage in found:
                        key = f"{precision}.{stage}.worst_error_over_sensitivity"
                        ratios[key] = max(ratios.get(key, 0.0), found[stage]["error_over_sensitivity"])
        self.evidence.figure("trust.models", len(self.found))
        self.evidence.figure("trust.false_refusals", len(refused))
        self.evidence.figure("trust.engine_faults", len(faults))  # refused, and rightly so
        self.evidence.samples["engine_faults"] = faults
        self.evidence.figure("trust.models_not_deployed", len(self.options.models) - len(self.found))
        for key, ratio in ratios.items():
            self.evidence.figure(key, ratio)
        worst = [value for key, value in self.evidence.figures.items() if key.endswith(".worst_over_200_calls")]
        if worst:
            self.evidence.figure("fp32.worst_over_200_calls", max(worst))
        self.failures += refused

    def judge_faults(self) -> None:
        """Judge every planted fault at every sensitivity."""
        from tests.support.planted_faults import ALLOWED, planted_faults

        runtime = "onnxruntime" if self.options.cpu else "tensorrt_rtx"
        faults = [(allowed, planted) for allowed in ALLOWED for planted in planted_faults(allowed, runtime)]
        passed = [f"{planted.name} at {allowed}" for allowed, planted in faults if planted.passes()]
        self.evidence.figure("trust.faults", len(faults) // len(ALLOWED))
        self.evidence.figure("trust.faults_judged", len(faults))
        self.evidence.figure("trust.false_passes", len(passed))
        self.failures += [f"a planted fault passes: {name}" for name in passed]


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    Run(evidence, options)()


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--models", type=listed(tuple(ORDINARY)), default=",".join(ORDINARY), help="which models")
    parser.add_argument("--precisions", type=listed(PRECISIONS), default=",".join(PRECISIONS), help="which precisions")
    parser.add_argument("--processes", type=int, default=14, help="models that are deployed at a time")
    parser.add_argument("--timeout", type=float, default=150.0, help="seconds that one model may take")
    parser.add_argument("--seconds", type=float, default=370.0, help="seconds that all may take together")
    parser.add_argument("--cpu", action="store_true", help="ONNX Runtime alone, without a GPU")
    _script.run("trust", body, parser, COVERS, needs_gpu=not parser.parse_args().cpu)


if __name__ == "__main__":
    main()
