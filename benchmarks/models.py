"""Time per call of whole models, TRTModule beside every other way to run them.

    python -m benchmarks.models --out DIR --workers 16 --torch-tensorrt FOLDER

Enters: a GPU, or several. Leaves: models.json. For each model and batch size all candidates answer the same input, are
held against PyTorch eager in the model's own dtype, and are then timed. Engines and compiled models are made in several
processes at the same time; each is timed while nobody else works on its GPU. What fails costs no other model its
figures, and stands in the samples.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _script
from benchmarks._worker import visible_devices
from benchmarks.evidence import Evidence
from benchmarks.models_worker import KINDS, OURS, SIZED
from benchmarks.peers import PEERS
from benchmarks.phased_jobs import Job, environment_of, run_jobs
from benchmarks.ratios import ratios_of
from benchmarks.zoo import ENTRIES

__all__ = ["listed", "main"]

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
)  # of the package: what the figures depend on
ORDER = ("engine", "compile", "torch_tensorrt", "sizes")
DEFAULT_MODE = "compile"  # of torch.compile
# What takes a minute or more for each batch begins first, and has a process for each.
SLOW = (
    ("swin_t", "compile"),
    ("lstm", "torch_tensorrt"),
    ("unet", "compile"),
    ("efficientnet_b0", "compile"),
    ("mobilenet_v3", "compile"),
)


class Results:
    """Gathers what the jobs report.

    Args:
        evidence: takes figures and samples.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.wrong: dict[str, str] = evidence.samples.setdefault("wrong", {})
        self.left_out: dict[str, str] = evidence.samples.setdefault("left_out", {})

    def take(self, job: Job, report: Mapping[str, Any]) -> None:
        """Take over a report, and write the draft."""
        for name, value in report.get("figures", {}).items():
            self.evidence.figure(name, value)
        for name, values in report.get("samples", {}).items():
            merged = self.evidence.samples.setdefault(name, {})
            for key, value in values.items():
                merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
        self.left_out.update(report.get("left_out", {}))
        self.wrong.update(report.get("wrong", {}))
        self.summarise()
        self.evidence.write_draft()
        print(f"{self.evidence.elapsed_s:.0f} s {job.name}: {', '.join(report)}", flush=True)

    def summarise(self) -> None:
        """Record the ratios of what is there so far."""
        for name, value in ratios_of(self.evidence.figures).items():
            self.evidence.figure(name, value)

    def fail(self, name: str, why: str, all_batches: Sequence[int]) -> None:
        """Say of a job that failed what is missing, and why."""
        model, kind, *own_batches = name.split()
        batches = [int(batch) for batch in own_batches] or all_batches
        self.evidence.samples.setdefault("errors", {})[name] = why
        last_words = why.strip().splitlines()
        brief = f"can't run: {last_words[0]}: {last_words[-1]}"[:300]
        for batch in batches:
            for candidate in (*(OURS if kind == "engine" else ()), *KINDS[kind]):
                figure = f"{model}.b{batch}.{candidate}"
                if f"{figure}.host_us" not in self.evidence.figures:
                    self.left_out.setdefault(figure, brief)


def jobs_of(options: argparse.Namespace, devices: Sequence[str]) -> list[Job]:
    """One process for each model and kind, or for each batch of `SLOW` ones, which come first.

    Args:
        options: the script's.
        devices: GPUs, as CUDA_VISIBLE_DEVICES names them; a model keeps to one.
    """
    others = [(model, kind) for kind in ORDER for model in options.models if (model, kind) not in SLOW]
    jobs: list[Job] = []
    for model, kind in [pair for pair in SLOW if pair[0] in options.models] + others:
        has_peers = bool(_peers(options, model, kind))
        if (kind == "sizes" and model != SIZED) or (kind in ("compile", "torch_tensorrt") and not has_peers):
            continue
        place = devices[options.models.index(model) % len(devices)]
        if (model, kind) in SLOW:
            jobs += [_job(options, model, kind, place, [batch], f" {batch}") for batch in options.batches]
        else:
            jobs.append(_job(options, model, kind, place, options.batches))
    return jobs


def _peers(options: argparse.Namespace, model: str, kind: str) -> list[str]:
    """The peers that are timed for a model by the processes of one kind."""
    skipped = () if model in options.default_mode else (DEFAULT_MODE,)
    return [name for name in KINDS[kind] if name in options.peers and name not in skipped]


def _job(
    options: argparse.Namespace, model: str, kind: str, place: str, batches: Sequence[int], suffix: str = ""
) -> Job:
    words = {
        "--model": model,
        "--kind": kind,
        "--peers": ",".join(_peers(options, model, kind)),
        "--batches": ",".join(map(str, batches)),
        "--rounds": options.rounds,
        "--starts": options.starts,
    }
    threads = max(1, len(os.sched_getaffinity(0)) // options.workers)
    library = options.torch_tensorrt if kind == "torch_tensorrt" else None
    command = [sys.executable, "-m", "benchmarks.models_worker"]
    command += [f"{option}={value}" for option, value in words.items()]
    return Job(f"{model} {kind}{suffix}", command, place, environment_of(place, threads, library))


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    evidence.samples["own_profiles"] = True
    results = Results(evidence)
    for model in set(options.models) - set(options.default_mode):
        for batch in options.batches:
            results.left_out[f"{model}.b{batch}.{DEFAULT_MODE}"] = (
                "not timed: its compiler takes long, see --default-mode"
            )
    jobs = jobs_of(options, visible_devices(os.environ))
    failures = run_jobs(jobs, options.workers, options.prepare, options.limit, results.take)
    for name, why in failures.items():
        print(f"{name}: {why}", flush=True)
        results.fail(name, why, options.batches)
    results.summarise()
    if not any(name.startswith("geomean.") for name in evidence.figures):
        raise RuntimeError("no model was timed")


def listed(known: Sequence[str] | None = None) -> Any:
    """A parser of comma-separated words, or of numbers."""

    def read(text: str) -> list[Any]:
        words = [word for word in text.split(",") if word]
        if known is None:
            return [int(word) for word in words]
        if set(words) - set(known):
            raise argparse.ArgumentTypeError(f"{text!r} is not of {','.join(known)}")
        return words

    return read


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--models", type=listed(tuple(ENTRIES)), default=",".join(ENTRIES), help="which models")
    parser.add_argument("--batches", type=listed(), default="1,8,32", help="batch sizes, within 1..32")
    parser.add_argument("--peers", type=listed(PEERS), default=",".join(PEERS), help="whom to time beside TRTModule")
    parser.add_argument(
        "--default-mode",
        type=listed(tuple(ENTRIES)),
        default=",".join(ENTRIES),
        help="models that torch.compile is also timed for in its default mode; in reduce-overhead it is for all",
    )
    parser.add_argument("--torch-tensorrt", type=Path, help="folder with Torch-TensorRT, for its processes alone")
    parser.add_argument("--workers", type=int, default=12, help="processes that prepare at the same time")
    parser.add_argument("--prepare", type=float, default=900, help="seconds for all of them to prepare")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one process to be timed")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each interleaved measurement")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes for the warm start's median")
    _script.run("models", body, parser, COVERS)
    wrong = json.loads((parser.parse_args().out / "models.json").read_text(encoding="utf-8"))["samples"]["wrong"]
    if wrong:  # the file stands, and says so
        sys.exit("\n".join(f"{name}: {why}" for name, why in wrong.items()))


if __name__ == "__main__":
    main()
