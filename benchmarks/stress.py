"""Many threads, shapes and streams on one module: nothing may be wrong, and no memory may stay behind.

    python -m benchmarks.stress --out DIR

Enters: a GPU. Leaves: stress.json. Threads call one module from the default stream, streams of their own, several in
turn, and one that PyTorch did not make. An input is written on the stream just before its call and spoilt right after
it; results are compared with PyTorch's answers on the same stream, and once more when later calls have come and gone.
Nothing synchronises in between. At the end compute-sanitizer watches a few calls. A wrong result makes the exit
status 1.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks.evidence import REPOSITORY, Evidence

__all__ = ["Checker", "Example", "Network", "examples", "main"]

COVERS = ("core", "trt", "artifact", "deployed")  # of the package: what the figures depend on
MIB = 2**20
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_graphs": {"cuda_graphs": False},
    "few_contexts": {"contexts": 4},  # fewer than shapes: planned anew all the time
    "graphs": {"cuda_graphs": True},
}
# Until every stream has made the graphs that it may keep for each shape, memory can't be flat.
LONGER_WARMUP = {"graphs": 4}
KEPT = 24
EACH_SHAPE = 3  # inputs
SIDE, CHANNELS, CLASSES = 12, 8, 16
# Different inputs' answers differ by the size of the outputs, rounding by far less, with TF32 or without.
BOUNDS = {"rtol": 2e-2, "atol": 2e-2}

# Tool of compute-sanitizer -> figure, and where its number stands.
SANITIZERS = {
    "memcheck": ("memcheck_errors", r"ERROR SUMMARY: (\d+) errors?"),
    "racecheck": ("racecheck_hazards", r"RACECHECK SUMMARY: (\d+) hazards? displayed.*"),
}

# Figure -> what it is over all configurations.
FIGURES: dict[str, Callable[[Iterable[float]], float]] = {
    "calls": sum,
    "checks": sum,
    "wrong": sum,
    "device_growth_mib": max,
    "host_growth_mib": max,
}


class Network(nn.Module):
    """A convolution and an MLP: several kernels, and working memory that grows with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3)
        self.body = nn.Sequential(nn.Linear(CHANNELS * (SIDE - 2) ** 2, 256), nn.ReLU(), nn.Linear(256, CLASSES))
        with torch.no_grad():
            self.body[-1].weight.mul_(10)  # answers of unit size, so that no two are alike within the bounds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.conv(x).relu().flatten(1))


@dataclass(frozen=True)
class Example:
    """An input with PyTorch's answer."""

    x: torch.Tensor
    y: torch.Tensor


def examples(model: nn.Module, shapes: int, device: str) -> list[Example]:
    """Random inputs of batch 1 to `shapes`, several of each, with their answers."""
    inputs = [
        torch.randn(batch, 3, SIDE, SIDE, device=device) for batch in range(1, shapes + 1) for _ in range(EACH_SHAPE)
    ]
    with torch.no_grad():
        return [Example(x, model(x)) for x in inputs]


class Checker:
    """Compares on the current stream and counts there; nothing waits for the device.

    Args:
        device: where results are.
    """

    def __init__(self, device: str) -> None:
        self.wrong = torch.zeros((), dtype=torch.long, device=device)
        self.checks = 0
        self._kept: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def check(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        """Count a result that differs anywhere; NaN differs."""
        self.checks += 1
        self.wrong += (~torch.isclose(found, expected, **BOUNDS)).any()

    def keep(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        """Check now, and again when `KEPT` later results have come."""
        self.check(found, expected)
        self._kept.append((found, expected))
        if len(self._kept) > KEPT:
            self.check(*self._kept.popleft())

    def finish(self) -> None:
        """Check what is still kept."""
        while self._kept:
            self.check(*self._kept.popleft())


def foreign_stream() -> torch.cuda.Stream:
    """A stream that CUDA's driver made, not PyTorch; it lives as long as the process."""
    cuda, handle = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    torch.cuda.synchronize()  # makes the device's context current here
    status = cuda.cuStreamCreate(ctypes.byref(handle), 1)  # CU_STREAM_NON_BLOCKING
    if status or not handle.value:
        raise RuntimeError(f"cuStreamCreate returned {status}")
    return torch.cuda.ExternalStream(handle.value)


def streams_of(number: int, foreign: torch.cuda.Stream) -> list[torch.cuda.Stream]:
    """The streams of a thread: the default one, its own, three in turn, or the foreign one."""
    kind = number % 4
    if kind == 0:
        return [torch.cuda.default_stream()]
    if kind == 1:
        return [torch.cuda.Stream()]
    if kind == 2:
        return [torch.cuda.Stream(), torch.cuda.default_stream(), torch.cuda.Stream(priority=-1)]
    return [foreign]


class Worker(threading.Thread):
    """One caller, for a warm-up and a run.

    Args:
        number: which thread it is; decides its streams and its random choices.
        module: what all threads share.
        known: inputs with answers.
        calls: of the warm-up and of the run.
        gate: where threads and the main one meet before and after each of the two.
        foreign: a stream that PyTorch did not make.
    """

    def __init__(
        self,
        number: int,
        module: t2e.TRTModule,
        known: Sequence[Example],
        calls: tuple[int, int],
        gate: threading.Barrier,
        foreign: torch.cuda.Stream,
    ) -> None:
        super().__init__(daemon=True)
        self.module, self.known, self.calls, self.gate = module, known, calls, gate
        self.error: BaseException | None = None
        self._random = random.Random(number)
        self._streams = streams_of(number, foreign)
        self.checkers = [Checker("cuda") for _ in self._streams]

    def run(self) -> None:
        try:
            with torch.no_grad():
                for calls in self.calls:
                    self.gate.wait()
                    self._call(calls)
                    self.gate.wait()
        except BaseException as error:
            self.error = error
            self.gate.abort()

    def _call(self, calls: int) -> None:
        order = [self.known[index % len(self.known)] for index in range(calls)]
        self._random.shuffle(order)
        for example in order:
            which = self._random.randrange(len(self._streams))
            with torch.cuda.stream(self._streams[which]):
                x = example.x.clone()
                y = self.module(x)
                if self._random.random() < 0.5:
                    x.fill_(float("nan"))
                del x  # its memory may be another's at once
                self.checkers[which].keep(y, example.y)
        for stream, checker in zip(self._streams, self.checkers, strict=True):
            with torch.cuda.stream(stream):
                checker.finish()
            stream.synchronize()

    def wrong(self) -> int:
        """Wrong results of warm-up and run."""
        return sum(int(checker.wrong) for checker in self.checkers)

    def checks(self) -> int:
        """Comparisons made."""
        return sum(checker.checks for checker in self.checkers)


@dataclass(frozen=True)
class Memory:
    """Bytes in use: PyTorch's tensors, the whole GPU, this process's own."""

    tensors: int
    device: int
    host: int


def memory() -> Memory:
    """What is in use now, when all that can be given back has been."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    free, total = torch.cuda.mem_get_info()
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return Memory(torch.cuda.memory_allocated(), total - free, int(resident.split()[1]) * 1024)


@dataclass(frozen=True)
class Outcome:
    """What one configuration came to.

    Args:
        calls: after the warm-up.
        checks, wrong: comparisons, and those that failed, of the warm-up too.
        before, after: memory in use before and after `calls`.
    """

    calls: int
    checks: int
    wrong: int
    before: Memory
    after: Memory

    @property
    def device_growth_mib(self) -> float:
        """Of PyTorch's tensors or of the whole GPU, whichever grew more."""
        return max(self.after.tensors - self.before.tensors, self.after.device - self.before.device) / MIB

    @property
    def host_growth_mib(self) -> float:
        """Of this process's resident memory."""
        return (self.after.host - self.before.host) / MIB


def stress(
    module: t2e.TRTModule,
    known: Sequence[Example],
    options: argparse.Namespace,
    warmup_calls: int,
    foreign: torch.cuda.Stream,
) -> Outcome:
    """Run all threads, once to warm up and once between two looks at the memory.

    Raises:
        Exception: what a thread raised.
    """
    warm, calls = (-(-total // options.threads) for total in (warmup_calls, options.calls))
    gate = threading.Barrier(options.threads + 1)
    workers = [Worker(number, module, known, (warm, calls), gate, foreign) for number in range(options.threads)]
    torch.cuda.synchronize()
    for worker in workers:
        worker.start()
    looks: list[Memory] = []
    try:
        for _ in range(2):
            gate.wait()
            gate.wait()
            looks.append(memory())
    except threading.BrokenBarrierError as broken:
        for worker in workers:
            worker.join()
        errors = [worker.error for worker in workers if worker.error is not None]
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), broken) from None
    for worker in workers:
        worker.join()
    return Outcome(
        calls=calls * options.threads,
        checks=sum(worker.checks() for worker in workers),
        wrong=sum(worker.wrong() for worker in workers),
        before=looks[0],
        after=looks[1],
    )


def prove_judge(known: Sequence[Example]) -> None:
    """Make sure that the comparison finds another input's answer, and lets the right one pass.

    Raises:
        RuntimeError: it does not.
    """
    checker = Checker("cuda")
    for first, second in itertools.pairwise(known):
        if first.y.shape == second.y.shape:
            checker.check(first.y, first.y)
            checker.check(first.y, second.y)
    if int(checker.wrong) * 2 != checker.checks or not checker.checks:
        raise RuntimeError(f"the comparison can't fail: {int(checker.wrong)} of {checker.checks // 2} wrong answers")


def sanitized(evidence: Evidence, artifact: t2e.EngineArtifact, model: nn.Module, known: Sequence[Example]) -> None:
    """Run a few calls under compute-sanitizer, which must find nothing.

    Raises:
        RuntimeError: it found something, an answer was wrong, or it could not run.
    """
    chosen = known[:: max(1, len(known) // 5)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        engine, asked = Path(folder) / "engine.t2e", Path(folder) / "examples.pt"
        module, cpu = t2e.TRTModule(artifact), copy.deepcopy(model).cpu()
        for one in chosen:
            module(one.x)
        module.save(engine)
        torch.save([(one.x.cpu(), cpu(one.x.cpu())) for one in chosen], asked)
        for tool, (what, pattern) in SANITIZERS.items():
            command = ["compute-sanitizer", "--tool", tool, "--target-processes", "application-only"]
            command += [sys.executable, "-m", "benchmarks.sanitize", str(engine), str(asked)]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
            summary = re.search(pattern, done.stdout)
            answers = re.search(r"^{.*}$", done.stdout, re.M)
            if done.returncode or summary is None or answers is None:
                raise RuntimeError(f"{tool} failed ({done.returncode}):\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}")
            evidence.figure(f"stress.{what}", float(summary[1]))
            evidence.samples[tool] = {"summary": summary[0], **json.loads(answers[0])}
            if float(summary[1]) or evidence.samples[tool]["wrong"]:
                raise RuntimeError(f"{tool}: {evidence.samples[tool]}\n{done.stdout[:3000]}")


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = Network().cuda().eval()
    known, foreign = examples(model, options.shapes, "cuda"), foreign_stream()
    prove_judge(known)
    axis = t2e.Axis("n", 1, max(1, options.shapes // 2), options.shapes)
    artifact = t2e.build(t2e.export(model, known[-1].x, {"x": {0: axis}}))
    outcomes: dict[str, Outcome] = {}
    for name in options.configs.split(","):
        module = t2e.TRTModule(artifact, runtime_config=t2e.RuntimeConfig(**CONFIGS[name]))
        _script.parity(known[-1].y, {name: module(known[-1].x)}, artifact.precision, "PyTorch vs the module, alone")
        warmup_calls = options.warmup_calls * LONGER_WARMUP.get(name, 1)
        outcome = outcomes[name] = stress(module, known, options, warmup_calls, foreign)
        evidence.samples[name] = asdict(outcome)
        for what in FIGURES:
            evidence.figure(f"stress.{name}.{what}", getattr(outcome, what))
        print(f"{name}: {outcome.wrong} of {outcome.checks} wrong after {evidence.elapsed_s:.0f} s", flush=True)
        del module
    for what, together in FIGURES.items():
        evidence.figure(f"stress.{what}", together(getattr(outcome, what) for outcome in outcomes.values()))
    evidence.figure("stress.threads", options.threads)
    evidence.figure("stress.shapes", options.shapes)
    evidence.figure("stress.seconds", evidence.elapsed_s)
    if options.sanitizers:
        sanitized(evidence, artifact, model, known)
    if wrong := sum(outcome.wrong for outcome in outcomes.values()):
        raise RuntimeError(f"{wrong} of {sum(outcome.checks for outcome in outcomes.values())} results were wrong")


class Short(argparse.Action):
    """Sets what a short run needs."""

    def __call__(self, parser: object, namespace: argparse.Namespace, *_: object) -> None:
        vars(namespace).update(calls=200, warmup_calls=80, threads=4, shapes=8)


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="calls of each configuration, after its warm-up")
    parser.add_argument("--warmup-calls", type=int, default=6_000, help="calls of each configuration's warm-up")
    parser.add_argument("--threads", type=int, default=8, help="threads that share the module")
    parser.add_argument("--shapes", type=int, default=64, help="batch sizes, from 1; at least 2")
    parser.add_argument("--configs", default=",".join(CONFIGS), help="which runtime configurations")
    parser.add_argument("--short", action=Short, nargs=0, help="200 calls, 4 threads, 8 shapes")
    parser.add_argument(
        "--sanitizers", action=argparse.BooleanOptionalAction, default=True, help="a short run under compute-sanitizer"
    )
    _script.run("stress", body, parser, COVERS)


if __name__ == "__main__":
    main()
