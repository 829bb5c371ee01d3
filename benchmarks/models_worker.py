"""One model of the benchmark `models`, run in one kind of way, in a process of its own.

Enters: a model's name and a kind. Leaves: figures and samples, as reports to `phased_jobs`. Apart because a peer that
crashes, or changes what holds for its whole process, must cost no other one its figures; and because engines and
compiled models take minutes to make, which several processes do at the same time.

The kinds: "engine" is TRTModule, beside what needs no compiler. "compile" is torch.compile. "torch_tensorrt" is
Torch-TensorRT, which this process alone needs to find. "sizes" is one engine for all batches, beside one for each.
Every kind also times PyTorch in a CUDA graph, so that a drift between the processes shows.
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
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks.evidence import REPOSITORY
from benchmarks.peers import COMPILED, TORCH_TENSORRT, Peer, peer, torch_tensorrt
from benchmarks.phased_jobs import say, say_done, wait_for_turn
from benchmarks.raw import RawEngine
from benchmarks.zoo import ENTRIES, Entry
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.core.errors import ParityError
from torch2engine.deployed.benchmark import Timing, measure
from torch2engine.precision.graph.engine_findings import attention_blocks_of, engine_findings, unfused_blocks
from torch2engine.precision.graph.engine_layers import read_layers

__all__ = ["KINDS", "OURS", "SIZED", "STARTED", "YARDSTICK"]

OURS = ("t2e_default", "t2e_own_stream", "t2e_static_graph")
# Kind -> the peers that it times.
KINDS: dict[str, tuple[str, ...]] = {
    "engine": ("raw", "eager", "eager_graph", "polygraphy"),
    "compile": tuple(COMPILED),
    "torch_tensorrt": tuple(TORCH_TENSORRT),
    "sizes": ("dynamic", "static"),
}
STARTED = "resnet50"  # the model whose memory and start are measured
SIZED = "resnet50"  # the model of the kind "sizes"
YARDSTICK = "eager_graph"
PRECISION = "fp16"
ALTERNATING = (1, 8)
WARM_CALLS = 12
MIB = 2**20


class Run:
    """One model in one kind of way.

    Args:
        options: the script's.
        folder: scratch space.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.name: str = options.model
        self.entry: Entry = ENTRIES[self.name]
        torch.manual_seed(0)
        self.model: nn.Module = self.entry.make()
        self.side = torch.cuda.Stream()
        # The same in every process, and made once: compilers specialise to these tensors.
        self.inputs = {batch: self.entry.inputs(batch) for batch in options.batches}
        self.expected = {batch: self.model(**inputs) for batch, inputs in self.inputs.items()}

    def __call__(self) -> None:
        getattr(self, self.options.kind)()

    def prefix(self, batch: int) -> str:
        return f"{self.name}.b{batch}"

    def left_out(self, batch: int, peer_name: str, error: Exception) -> None:
        """Report why a peer is not timed."""
        kind = "wrong" if isinstance(error, ParityError) else "can't run"
        first = str(error).partition("\n")[0][:300]
        why = f"{kind}: {type(error).__name__}: {first}"
        say({"left_out": {f"{self.prefix(batch)}.{peer_name}": why}})

    def compare(self, batch: int, peers: Mapping[str, Peer], when: str = "") -> float:
        """The largest relative L2 error.

        Raises:
            ParityError: one answers wrong.
        """
        found = {name: _answered(one) for name, one in peers.items()}
        subject = f"PyTorch vs each candidate{when}, {self.prefix(batch)}"
        return _script.parity(self.expected[batch], found, PRECISION, subject)[0]

    def made(self, batch: int, name: str, make: Callable[[], Peer]) -> Peer | None:
        """A peer that runs and answers right; None, after a report, for one that does not."""
        candidate: Peer | None = None
        began = time.perf_counter()
        try:
            candidate = make()
            figures = {f"{self.prefix(batch)}.{name}.rel_l2": self.compare(batch, {name: candidate})}
        except Exception as error:
            if candidate is not None:
                candidate.close()
            if name == "eager":
                raise
            self.left_out(batch, name, error)
            return None
        if name in COMPILED:  # it compiles at the first call
            figures[f"{self.prefix(batch)}.{name}.compile_s"] = time.perf_counter() - began
        say({"figures": figures})
        return candidate

    def time(self, batch: int, peers: Mapping[str, Peer], is_yardstick: bool = True) -> dict[str, Timing]:
        """Time peers side by side, compare them once more, and report."""
        timings = measure(
            {name: candidate.call for name, candidate in peers.items()},
            device="cuda",
            rounds=self.options.rounds,
            streams={name: one.stream for name, one in peers.items() if one.stream is not None},
        )
        self.compare(batch, peers, " after the timing")
        prefix = self.prefix(batch)
        if is_yardstick and YARDSTICK in timings:
            kind = f"{prefix}.{self.options.kind}"
            say({"samples": {"yardsticks": {kind: timings.pop(YARDSTICK).device_us}}})
        for name, timing in timings.items():
            say({"figures": figures_of(f"{prefix}.{name}", timing)})
        say({"samples": {"calls_per_round": {prefix: {name: timing.calls for name, timing in timings.items()}}}})
        return timings

    def compile(self) -> None:
        """torch.compile, in each mode."""
        candidates: dict[int, dict[str, Peer]] = {}
        for batch, inputs in self.inputs.items():
            makers = {name: functools.partial(peer, name, self.model, None, inputs) for name in self.options.peers}
            candidates[batch] = self.all_made(batch, makers)
        wait_for_turn()
        for batch, peers in candidates.items():
            if peers:
                self.time(batch, {**peers, **self.yardstick(batch)})

    def all_made(self, batch: int, makers: Mapping[str, Callable[[], Peer]]) -> dict[str, Peer]:
        """The peers that run and answer right."""
        made = {name: self.made(batch, name, make) for name, make in makers.items()}
        return {name: candidate for name, candidate in made.items() if candidate is not None}

    def yardstick(self, batch: int) -> dict[str, Peer]:
        return {YARDSTICK: peer(YARDSTICK, self.model, None, self.inputs[batch])}

    def torch_tensorrt(self) -> None:
        """Torch-TensorRT, first without CUDA graphs, then with them: its mode holds for the process."""
        openers: dict[int, Callable[[bool], Peer]] = {}
        runnable: dict[int, list[str]] = {}
        for batch, inputs in self.inputs.items():
            began = time.perf_counter()
            try:
                openers[batch] = torch_tensorrt(self.model, inputs)
            except Exception as error:
                for name in self.options.peers:
                    self.left_out(batch, name, error)
                continue
            say({"figures": {f"{self.prefix(batch)}.torch_tensorrt.compile_s": time.perf_counter() - began}})
            for name in self.options.peers:
                candidate = self.made(batch, name, functools.partial(openers[batch], TORCH_TENSORRT[name]))
                if candidate is not None:
                    candidate.close()
                    runnable.setdefault(batch, []).append(name)
        wait_for_turn()
        for batch, names in runnable.items():
            for name in names:
                candidate = openers[batch](TORCH_TENSORRT[name])
                self.time(batch, {name: candidate, **self.yardstick(batch)})
                candidate.close()

    def sizes(self) -> None:
        """One engine for all batches, with profiles by themselves, beside one for each batch of fixed size."""
        axis = self.entry.batch
        dynamic = t2e.TRTModule(
            t2e.build(t2e.export(self.model, self.entry.inputs(axis.opt), self.entry.axes(), profiles="auto"))
        )
        candidates: dict[int, dict[str, Peer]] = {}
        for batch, inputs in self.inputs.items():
            static = t2e.TRTModule(t2e.build(t2e.export(self.model, inputs)))
            candidates[batch] = {
                "dynamic": _module(dynamic, inputs, None),
                "static": _module(static, inputs, None),
            }
            self.compare(batch, candidates[batch])
        wait_for_turn()
        for batch, peers in candidates.items():
            self.time(batch, {**peers, **self.yardstick(batch)})

    def engine(self) -> None:
        """TRTModule in its three ways, beside what needs no compiler."""
        began = time.perf_counter()
        exported = t2e.export(self.model, self.entry.inputs(self.entry.batch.opt), self.entry.axes())
        exported_s = time.perf_counter() - began
        built = t2e.build(exported, self.profiles())
        seconds = {"export_s": exported_s, "build_s": time.perf_counter() - began - exported_s}
        say({"figures": {f"{self.name}.{name}": value for name, value in seconds.items()}})
        cold, warm = self.folder / "cold.t2e", self.folder / "warm.t2e"
        built.save(cold)
        module = t2e.TRTModule(built)
        self.memory(module, built)
        for inputs in self.inputs.values():
            _warm(module, inputs)
        module.save(warm)  # with the kernels that were compiled by now, so that what follows starts warm
        artifact = load_artifact(warm)
        assert isinstance(artifact, EngineArtifact)
        self.describe(module, artifact)
        raw = RawEngine(artifact, artifact.read_runtime_cache())
        static = t2e.RuntimeConfig(cuda_graphs=True, output="static")
        ours: dict[str, tuple[t2e.TRTModule, torch.cuda.Stream | None]] = {
            "t2e_default": (t2e.TRTModule(artifact), None),
            "t2e_own_stream": (t2e.TRTModule(artifact), self.side),
            "t2e_static_graph": (t2e.TRTModule(artifact, runtime_config=static), self.side),
        }
        candidates = {batch: self.engine_candidates(batch, ours, raw) for batch in self.inputs}
        wait_for_turn()
        for batch, peers in candidates.items():
            self.time(batch, peers, is_yardstick=False)
        if all(OURS[0] in peers for peers in candidates.values()):
            self.alternating(t2e.TRTModule(artifact))
        if self.name == STARTED:
            say({"figures": {f"{self.name}.context_mib_engine": raw.memory_bytes / MIB}})
            self.starts("warm", warm, self.options.starts)
            self.starts("cold", cold, 1)
        for candidate in itertools.chain.from_iterable(peers.values() for peers in candidates.values()):
            candidate.close()

    def profiles(self) -> list[dict[str, tuple[int, int, int]]]:
        """One for all sizes, and one for each that is timed, as a user has it who calls these most."""
        axis = self.entry.batch
        return [{axis.name: axis.range}, *({axis.name: (batch, batch, batch)} for batch in self.options.batches)]

    def engine_candidates(
        self, batch: int, ours: Mapping[str, tuple[t2e.TRTModule, torch.cuda.Stream | None]], raw: RawEngine
    ) -> dict[str, Peer]:
        """TRTModule's ways and the peers, as far as they answer right; a wrong TRTModule is reported as such."""
        inputs = self.inputs[batch]
        found = {name: _module(module, inputs, stream) for name, (module, stream) in ours.items()}
        try:
            say({"figures": {f"{self.prefix(batch)}.rel_l2": self.compare(batch, found)}})
        except ParityError as error:
            say({"wrong": {self.prefix(batch): str(error)}})
            for name in found:
                self.left_out(batch, name, error)
            found = {}
        makers = {name: functools.partial(peer, name, self.model, raw, inputs) for name in self.options.peers}
        return {**found, **self.all_made(batch, makers)}

    def memory(self, module: t2e.TRTModule, built: EngineArtifact) -> None:
        """What the engine works in when it has seen batch 1 alone."""
        _warm(module, self.entry.inputs(1))
        figures = {"context_mib_b1": module.memory_bytes / MIB, "plan_mib": len(built.plan_buffer()) / MIB}
        say({"figures": {f"{self.name}.{name}": value for name, value in figures.items()}})

    def describe(self, module: t2e.TRTModule, artifact: EngineArtifact) -> None:
        """How much of the attention is fused, and what makes the engine slower than it could be."""
        text = module.layers()
        findings = [str(finding) for finding in engine_findings(artifact, None, text)]
        say({"samples": {"findings": {self.name: findings}}})
        blocks = attention_blocks_of(artifact)
        layers = read_layers(text)
        if blocks and layers:
            fused_share = 1 - len(unfused_blocks(blocks, layers)) / len(blocks)
            say({"figures": {f"{self.name}.fused_share": fused_share, f"{self.name}.attention_blocks": len(blocks)}})

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
        fixed = statistics.mean(timings[str(batch)].host_us for batch in ALTERNATING)
        ratio = {f"{self.name}.alternating.ratio_to_fixed": timings["alternating"].host_us / fixed}
        say({"figures": {**figures_of(f"{self.name}.alternating", timings["alternating"]), **ratio}})

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
        figures = {f"{self.name}.{kind}_start_s": statistics.median(one["start_s"] for one in seconds)}
        if kind == "warm":
            for step in ("import_s", "cuda_init_s"):
                figures[f"{self.name}.{step}"] = statistics.median(one[step] for one in seconds)
        say({"figures": figures, "samples": {f"{kind}_starts": {self.name: seconds}}})


def figures_of(prefix: str, timing: Timing) -> dict[str, float]:
    """A timing's figures under a dotted name."""
    figures = {f"{prefix}.host_us": timing.host_us, f"{prefix}.host_p95_us": timing.host_p95_us}
    if timing.device_us is not None and timing.device_p95_us is not None:
        figures |= {f"{prefix}.device_us": timing.device_us, f"{prefix}.device_p95_us": timing.device_p95_us}
    return figures


def _warm(module: t2e.TRTModule, inputs: Mapping[str, torch.Tensor]) -> None:
    for _ in range(WARM_CALLS):
        module(**inputs)
    torch.cuda.synchronize()


def _module(module: t2e.TRTModule, inputs: Mapping[str, torch.Tensor], stream: torch.cuda.Stream | None) -> Peer:
    call = functools.partial(module, **inputs)
    torch.cuda.synchronize()
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


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=tuple(ENTRIES), required=True)
    parser.add_argument("--kind", choices=tuple(KINDS), required=True)
    parser.add_argument("--batches", type=lambda text: [int(word) for word in text.split(",")], default="1,8,32")
    parser.add_argument("--peers", type=lambda text: [word for word in text.split(",") if word], default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    _script.require_gpu()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        try:
            Run(options, Path(folder))()
        except ParityError as error:
            say({"wrong": {f"{options.model} {options.kind}": str(error)}})
            raise
    say_done()


if __name__ == "__main__":
    main()
