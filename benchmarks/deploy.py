"""Seconds of deploy() for whole models in half precision, phase by phase, beside other ways to an engine.

    python -m benchmarks.deploy --out DIR --torch-tensorrt FOLDER

Enters: a GPU, or several. Leaves: deploy.json. Beside deploy() stand torch.onnx.export with TensorRT's build, which
compare nothing, and Torch-TensorRT at one size. Each has a fresh process, which has imported everything and called the
model when the clock starts. Processes of one GPU take turns.
"""

from __future__ import annotations

import argparse
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

COVERS = ("core", "trt", "artifact", "modules", "capture", "exporter", "onnx_graph", "builder", "parity", "pipeline")
MODELS = ("resnet50", "vit_b_16", "bert", "convnext_tiny", "swin_t", "dinov2_s", "llama_6", "unet")
FOUR_PROFILES = "vit_b_16"  # the model that is also deployed with four profiles


def jobs_of(options: argparse.Namespace, devices: Sequence[str]) -> list[Job]:
    """A process for each model and kind.

    Args:
        options: the script's.
        devices: GPUs, as CUDA_VISIBLE_DEVICES names them; a model keeps to one.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // len(devices))
    jobs: list[Job] = []
    for index, model in enumerate(options.models):
        for kind in KINDS:
            if kind == "four_profiles" and model != FOUR_PROFILES:
                continue
            place = devices[index % len(devices)]
            command = [sys.executable, "-m", "benchmarks.deploy_worker", f"--model={model}", f"--kind={kind}"]
            library = options.torch_tensorrt if kind == "torch_tensorrt" else None
            jobs.append(Job(f"{model} {kind}", command, place, environment_of(place, threads, library)))
    return jobs


def figures_of(figures: Mapping[str, float]) -> dict[str, float]:
    """What follows from the seconds: the share of the longest phase, and ratios to the other ways."""
    found: dict[str, float] = {}
    for name, seconds in figures.items():
        match = re.fullmatch(r"(\w+\.fp16)\.seconds", name)
        if match is None:
            continue
        model = match[1]
        phases = [value for other, value in figures.items() if other.startswith(f"{model}.phase.")]
        if phases:
            found[f"{model}.longest_phase_share"] = max(phases) / seconds
        for other, ratio in (("alone.seconds", "ratio_to_alone"), ("torch_tensorrt_s", "ratio_to_torch_tensorrt")):
            if f"{model}.{other}" in figures:
                found[f"{model}.{ratio}"] = seconds / figures[f"{model}.{other}"]
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
    failures = run_jobs(jobs, options.workers, options.prepare, options.limit, take)
    evidence.samples["errors"] = failures
    own = [f"{name}: {why}" for name, why in failures.items() if name.split()[1] in ("deploy", "four_profiles")]
    if own:
        raise RuntimeError("\n".join(own))


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--models", type=listed(tuple(ENTRIES)), default=",".join(MODELS), help="which models")
    parser.add_argument("--torch-tensorrt", type=Path, help="folder with Torch-TensorRT, for its processes alone")
    parser.add_argument("--workers", type=int, default=8, help="processes that prepare at the same time")
    parser.add_argument("--prepare", type=float, default=300, help="seconds for all of them to prepare")
    parser.add_argument("--limit", type=float, default=200, help="seconds for one process after that")
    _script.run("deploy", body, parser, COVERS)


if __name__ == "__main__":
    main()
