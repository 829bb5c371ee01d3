"""Time per call of whole models, TRTModule beside every other way to run them.

    python -m benchmarks.models --out DIR

Enters: a GPU. Leaves: models.json. For each model and batch size all candidates answer the same input, are held against
PyTorch eager in the model's own dtype, and are then timed in one interleaved measurement. torch.compile takes many
seconds for each shape, so it is timed where `--compiled` says only. ResNet-50 also tells what an engine works in and
how long a fresh process needs for its first answer.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks.evidence import REPOSITORY, Evidence
from benchmarks.peers import COMPILED, PEERS, Peer, peer
from benchmarks.raw import RawEngine
from benchmarks.zoo import ENTRIES, Entry
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.core.errors import ParityError
from torch2engine.modules.benchmark import measure

__all__ = ["main"]

COVERS = (
    "core",
    "trt",
    "artifact",
    "modules",
    "capture",
    "exporter",
    "onnx_graph",
    "builder",
    "precision",
)  # of the package: what the figures depend on
STARTED = "resnet50"  # the model whose memory and start are measured
ALTERNATING = (1, 8)
WARM_CALLS = 12
MIB = 2**20

# Which torch.compile to pay for. Not BERT's: with it beside the others torch 2.11 once met an illegal memory access
# by a candidate that is not known yet; without it there was none.
COMPILE_AT = "tiny:1,resnet50:1"


class Run:
    """One model's benchmark.

    Args:
        name: in `ENTRIES`.
        evidence: takes the figures.
        options: the script's.
        folder: scratch space.
    """

    def __init__(self, name: str, evidence: Evidence, options: argparse.Namespace, folder: Path) -> None:
        self.name, self.evidence, self.options, self.folder = name, evidence, options, folder
        self.entry: Entry = ENTRIES[name]
        torch.manual_seed(0)
        self.model: nn.Module = self.entry.make()
        self.side = torch.cuda.Stream()

    def __call__(self) -> None:
        built = t2e.build(t2e.export(self.model, self.entry.inputs(8), self.entry.axes()), self.profiles())
        cold, warm = self.folder / "cold.t2e", self.folder / "warm.t2e"
        built.save(cold)
        module = t2e.TRTModule(built)
        self.memory(module, built)
        for batch in self.options.batches:
            _warm(module, self.entry.inputs(batch))
        module.save(warm)  # with the kernels that were compiled by now, so that what follows starts warm
        artifact = load_artifact(warm)
        assert isinstance(artifact, EngineArtifact)
        raw = RawEngine(artifact, artifact.read_runtime_cache())
        ours = {
            "t2e_default": (t2e.TRTModule(artifact), None),
            "t2e_own_stream": (t2e.TRTModule(artifact), self.side),
            "t2e_static_graph": (
                t2e.TRTModule(artifact, runtime_config=t2e.RuntimeConfig(cuda_graphs=True, output="static")),
                self.side,
            ),
        }
        for batch in self.options.batches:
            self.batch(batch, artifact, raw, ours)
        self.alternating(t2e.TRTModule(artifact))
        if self.name == STARTED:
            self.evidence.figure(f"{self.name}.context_mib_engine", raw.memory_bytes / MIB)
            self.starts("warm", warm, self.options.starts)
            self.starts("cold", cold, 1)

    def profiles(self) -> list[dict[str, tuple[int, int, int]]]:
        """One for all sizes, and one for each that is timed, as a user has it who calls these most."""
        axis = self.entry.batch
        return [{axis.name: axis.range}, *({axis.name: (batch, batch, batch)} for batch in self.options.batches)]

    def memory(self, module: t2e.TRTModule, built: EngineArtifact) -> None:
        """What the engine works in when it has seen batch 1 alone."""
        _warm(module, self.entry.inputs(1))
        self.evidence.figure(f"{self.name}.context_mib_b1", module.memory_bytes / MIB)
        self.evidence.figure(f"{self.name}.plan_mib", len(built.plan_buffer()) / MIB)

    def batch(
        self,
        batch: int,
        artifact: EngineArtifact,
        raw: RawEngine,
        ours: Mapping[str, tuple[t2e.TRTModule, torch.cuda.Stream | None]],
    ) -> None:
        """Parity, then time, of every candidate at one batch size."""
        prefix = f"{self.name}.b{batch}"
        inputs = self.entry.inputs(batch)
        torch.cuda.synchronize()
        candidates = {name: _module(module, inputs, stream) for name, (module, stream) in ours.items()}
        expected = self.model(**inputs)
        found = {name: _answered(candidate) for name, candidate in candidates.items()}
        worst, _ = _script.parity(expected, found, artifact.precision, f"PyTorch vs each candidate, {prefix}")
        self.evidence.figure(f"{prefix}.rel_l2", worst)
        for name in self.options.peers:
            if name in COMPILED and f"{self.name}:{batch}" not in self.options.compiled:
                self.left_out(f"{prefix}.{name}", "not timed: compiling takes long, see --compiled")
                continue
            made = self.peer(name, prefix, raw, inputs, expected, artifact.precision)
            if made is not None:
                candidates[name] = made
        timings = measure(
            {name: candidate.call for name, candidate in candidates.items()},
            device="cuda",
            rounds=self.options.rounds,
            streams={name: one.stream for name, one in candidates.items() if one.stream is not None},
        )
        found = {name: _answered(candidate) for name, candidate in candidates.items()}
        _script.parity(expected, found, artifact.precision, f"PyTorch vs each candidate after the timing, {prefix}")
        for name, timing in timings.items():
            _script.record(self.evidence, f"{prefix}.{name}", timing)
            candidates[name].close()
        self.evidence.samples.setdefault("calls_per_round", {})[prefix] = {n: t.calls for n, t in timings.items()}

    def peer(
        self,
        name: str,
        prefix: str,
        raw: RawEngine,
        inputs: dict[str, torch.Tensor],
        expected: torch.Tensor,
        precision: str,
    ) -> Peer | None:
        """A peer that runs and answers right; None, with the reason kept, for one of another project's that does not.

        Raises:
            ParityError: TensorRT itself is wrong on our plan.
        """
        try:
            made = peer(name, self.model, raw, inputs)
            _script.parity(expected, {name: _answered(made)}, precision, f"PyTorch vs {name}, {prefix}")
        except Exception as error:
            if name in ("raw", "eager"):
                raise
            kind = "wrong" if isinstance(error, ParityError) else "can't run"
            first = str(error).partition("\n")[0][:300]
            self.left_out(f"{prefix}.{name}", f"{kind}: {type(error).__name__}: {first}")
            return None
        return made

    def left_out(self, what: str, why: str) -> None:
        self.evidence.samples.setdefault("left_out", {})[what] = why

    def alternating(self, module: t2e.TRTModule) -> None:
        """Two batch sizes in turn on the caller's own stream, beside each alone."""
        inputs = {batch: self.entry.inputs(batch) for batch in ALTERNATING}
        torch.cuda.synchronize()
        turn = itertools.cycle(inputs.values())
        calls: dict[str, Any] = {"alternating": lambda: module(**next(turn))}
        calls |= {str(batch): functools.partial(module, **inputs[batch]) for batch in ALTERNATING}
        with torch.cuda.stream(self.side):
            for call in calls.values():
                for _ in range(WARM_CALLS):
                    call()
            timings = measure(calls, device="cuda", rounds=self.options.rounds)
            for batch in ALTERNATING:
                answer = module(**inputs[batch])
                expected = self.model(**inputs[batch])
                _script.parity(expected, {str(batch): answer}, module.precision, f"alternating, {self.name}")
        _script.record(self.evidence, f"{self.name}.alternating", timings["alternating"])
        fixed = statistics.mean(timings[str(batch)].host_us for batch in ALTERNATING)
        self.evidence.figure(f"{self.name}.alternating.ratio_to_fixed", timings["alternating"].host_us / fixed)

    def starts(self, kind: str, artifact: Path, processes: int) -> None:
        """First answers of fresh processes; their median."""
        asked, answered = self.folder / "inputs.pt", self.folder / "answer.pt"
        inputs = self.entry.inputs(1)
        torch.save({name: tensor.cpu() for name, tensor in inputs.items()}, asked)
        expected = self.model(**inputs).cpu()
        command = [sys.executable, "-m", "benchmarks.start", str(artifact), str(asked), str(answered)]
        seconds: list[dict[str, float]] = []
        for _ in range(processes):
            answered.unlink(missing_ok=True)
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command[1:3])} failed ({done.returncode}):\n{done.stderr[-2000:]}")
            seconds.append(json.loads(done.stdout.splitlines()[-1]))
            answer = torch.load(answered, weights_only=True)
            _script.parity(expected, {f"{kind} start": answer}, "fp16", f"PyTorch vs a fresh process, {self.name}")
        self.evidence.samples[f"{self.name}.{kind}_starts"] = seconds
        self.evidence.figure(f"{self.name}.{kind}_start_s", statistics.median(one["start_s"] for one in seconds))
        if kind == "warm":
            for step in ("import_s", "cuda_init_s"):
                self.evidence.figure(f"{self.name}.{step}", statistics.median(one[step] for one in seconds))


def _warm(module: t2e.TRTModule, inputs: Mapping[str, torch.Tensor]) -> None:
    for _ in range(WARM_CALLS):
        module(**inputs)
    torch.cuda.synchronize()


def _module(module: t2e.TRTModule, inputs: Mapping[str, torch.Tensor], stream: torch.cuda.Stream | None) -> Peer:
    call = functools.partial(module, **inputs)
    with torch.cuda.stream(stream):
        _warm(module, inputs)
    return Peer(call, lambda: call().clone(), stream)


def _answered(candidate: Peer) -> torch.Tensor:
    """The candidate's answer, complete."""
    torch.cuda.synchronize()
    with torch.cuda.stream(candidate.stream):
        answer = candidate.answer()
    torch.cuda.synchronize()
    return answer


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    evidence.samples["own_profiles"] = True
    for name in options.models:
        if evidence.elapsed_s > options.seconds:
            evidence.samples.setdefault("left_out", {})[name] = "not timed: --seconds were over"
            continue
        with tempfile.TemporaryDirectory() as folder:
            Run(name, evidence, options, Path(folder))()
        print(f"{name}: done after {evidence.elapsed_s:.0f} s", flush=True)
        torch.compiler.reset()
        torch.cuda.empty_cache()


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
        "--compiled",
        type=lambda text: text.split(","),
        default=COMPILE_AT,
        help="MODEL:BATCH at which torch.compile is timed",
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further model after that")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each interleaved measurement")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes for the warm start's median")
    _script.run("models", body, parser, COVERS)


if __name__ == "__main__":
    main()
