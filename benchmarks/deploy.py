"""Seconds of deploy() for whole models in half precision, phase by phase, beside other ways to an engine.

    python -m benchmarks.deploy --out DIR --torch-tensorrt FOLDER

Enters: a GPU, or several. Leaves: deploy.json. Beside deploy() stand torch.onnx.export with TensorRT's build, which
compare nothing, and Torch-TensorRT at one size. Each has a fresh process. It has imported everything, and called the
model, when the clock starts. Processes of one GPU take turns; `--at-a-time` lets several work at once, each with its
share of the CPU's cores. What fails costs nothing else its figures, and stands in the samples, as does what a run that
was cut has not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _script
from benchmarks._worker import visible_devices
from benchmarks.deploy_worker import KINDS
from benchmarks.evidence import Evidence
from benchmarks.models import listed
from benchmarks.phased_jobs import Job, environment_of, run_jobs
from benchmarks.zoo import ENTRIES

__all__ = ["figures_of", "jobs_of", "main"]

COVERS = (
    "core",
    "trt",
    "artifact",
    "deployed",
    "capture",
    "exporter",
    "onnx_graph",
    "builder",
    "parity",
    "precision",
    "deploy_steps",
    "deploy.py",
)  # of the package: what the figures depend on
MODELS = ("resnet50", "vit_b_16", "bert", "convnext_tiny", "swin_t", "dinov2_s", "llama_6", "unet")
FOUR_PROFILES = "vit_b_16"  # the model that is also deployed with four profiles
_TIME_IS_UP = re.compile(r"not timed|ended when the")  # as `phased_jobs` says it
OWN = ("deploy", "four_profiles")
# What the project promises seconds for, and the peer beside it: a run that is cut has these first.
PROMISED = ("resnet50", "vit_b_16", "bert")
PROMISED_KINDS = (*OWN, "torch_tensorrt")


def jobs_of(options: argparse.Namespace, devices: Sequence[str]) -> list[Job]:
    """A process for each model and kind, in the order in which they are timed.

    Those of `PROMISED` come first. Among these, and among the others, the kinds come in the order of the option.

    Args:
        options: the script's.
        devices: GPUs, as CUDA_VISIBLE_DEVICES names them; a model keeps to one.
    """
    places = [(device, turn) for turn in range(options.at_a_time) for device in devices]
    threads = max(1, len(os.sched_getaffinity(0)) // len(places))
    place_of = {model: places[index % len(places)] for index, model in enumerate(options.models)}
    jobs: list[Job] = []
    for model, kind in _in_order(options.models, options.kinds):
        device, turn = place_of[model]
        command = [sys.executable, "-m", "benchmarks.deploy_worker", f"--model={model}", f"--kind={kind}"]
        library = options.torch_tensorrt if kind == "torch_tensorrt" else None
        # Without the driver's cache of kernels, which a process with the same model before would have filled.
        environment = {**environment_of(device, threads, library), "CUDA_CACHE_DISABLE": "1"}
        jobs.append(Job(f"{model} {kind}", command, f"{device} turn {turn}", environment))
    return jobs


def _in_order(models: Sequence[str], kinds: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of a model and a kind, those of `PROMISED` first."""
    pairs = [(model, kind) for kind in kinds for model in models if kind != "four_profiles" or model == FOUR_PROFILES]
    return sorted(pairs, key=lambda pair: not (pair[0] in PROMISED and pair[1] in PROMISED_KINDS))


def figures_of(figures: Mapping[str, float]) -> dict[str, float]:
    """What follows from the seconds: the share of the longest phase, and ratios to the other ways."""
    found: dict[str, float] = {}
    for name, seconds in figures.items():
        match = re.fullmatch(r"(\w+\.fp16\.)(four_profiles_)?seconds", name)
        if match is None:
            continue
        model, kind = match[1], match[2] or ""
        phases = [value for other, value in figures.items() if other.startswith(f"{model}{kind}phase.")]
        if phases:
            found[f"{model}{kind}longest_phase_share"] = max(phases) / seconds
        if kind:  # the other ways have one profile
            continue
        for other, ratio in (("alone.seconds", "ratio_to_alone"), ("torch_tensorrt_s", "ratio_to_torch_tensorrt")):
            if f"{model}{other}" in figures:
                found[f"{model}{ratio}"] = seconds / figures[f"{model}{other}"]
    return found


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    def take(job: Job, report: Mapping[str, Any]) -> None:
        for name, value in report["figures"].items():
            evidence.figure(name, value)
        for name, value in figures_of(evidence.figures).items():
            evidence.figure(name, value)
        evidence.write_draft()
        print(f"{evidence.elapsed_s:.0f} s {job.name}", flush=True)

    jobs = jobs_of(options, visible_devices(os.environ))
    failures = run_jobs(jobs, options.workers, options.prepare, options.limit, take, options.turns)
    for name, why in failures.items():
        print(f"{name}: {why}", flush=True)
    evidence.samples["errors"] = failures
    evidence.samples["not_timed"] = [job.name for job in jobs if _TIME_IS_UP.match(failures.get(job.name, ""))]
    if not any(name.endswith("seconds") for name in evidence.figures):
        raise RuntimeError("nothing was timed")


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--models", type=listed(tuple(ENTRIES)), default=",".join(MODELS), help="which models")
    parser.add_argument("--kinds", type=listed(tuple(KINDS)), default=",".join(KINDS), help="which ways, in this order")
    parser.add_argument("--torch-tensorrt", type=Path, help="folder with Torch-TensorRT, for its processes alone")
    parser.add_argument("--workers", type=int, default=8, help="processes that prepare at the same time")
    parser.add_argument("--at-a-time", type=int, default=1, help="processes that are timed at the same time on a GPU")
    parser.add_argument("--prepare", type=float, default=300, help="seconds for all of them to prepare")
    parser.add_argument("--limit", type=float, default=200, help="seconds for one process after that")
    parser.add_argument("--turns", type=float, default=3600, help="seconds for all processes after that")
    _script.run("deploy", body, parser, COVERS)
    errors = json.loads((parser.parse_args().out / "deploy.json").read_text(encoding="utf-8"))["samples"]["errors"]
    own = [f"{name}: {why}" for name, why in errors.items() if name.split()[1] in OWN]
    if own:  # the file stands, and says so
        sys.exit("\n".join(own))


if __name__ == "__main__":
    main()
