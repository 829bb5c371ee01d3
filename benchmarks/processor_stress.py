"""A Processor and a TRTModule of one engine, shared by several threads: nothing may be wrong, and memory stays flat.

Enters: options of `benchmarks.processor`. Leaves: figures in its evidence. Apart because nothing here is timed.
"""

from __future__ import annotations

import argparse
import random
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import torch2engine as t2e
from benchmarks import stress
from benchmarks.evidence import Evidence

__all__ = ["Array", "only", "shared"]

SHARE_OF_MODULE = 0.2
VISITS = 2  # of every input by every thread, before anything is measured
MIB = 2**20
MOST_GROWTH_MIB = 1

Array = np.ndarray[Any, Any]


def only(results: Mapping[str, Array]) -> Array:
    """The value of the only output."""
    (value,) = results.values()
    return value


class Caller(threading.Thread):
    """One of the threads that share a Processor and a TRTModule.

    Args:
        number: which one it is.
        processor, module: of one engine.
        known: arrays with PyTorch's answers.
        calls: of the warm-up and of the run.
        gate: where the threads and the main one meet before and after each.
    """

    def __init__(
        self,
        number: int,
        processor: t2e.Processor,
        module: t2e.TRTModule,
        known: Sequence[tuple[Array, Array]],
        calls: tuple[int, int],
        gate: threading.Barrier,
    ) -> None:
        super().__init__(daemon=True)
        self.processor, self.module, self.known, self.calls, self.gate = processor, module, known, calls, gate
        self.wrong = self.wrong_module = self.checks = 0
        self.error: BaseException | None = None
        self._random = random.Random(number)
        self._kept: deque[tuple[Array, Array]] = deque()

    def run(self) -> None:
        try:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
                for number, calls in enumerate(self.calls):
                    self.gate.wait()
                    if not number:
                        self.visit()
                    self.answer(calls)
                    self.gate.wait()
        except BaseException as error:
            self.error = error
            self.gate.abort()

    def visit(self) -> None:
        """Call every shape, so that nothing is left to be made at its first call."""
        for turn in range(VISITS):  # begun at another place each time, since streams take turns as items do
            asked = [*self.known[turn:], *self.known[:turn]]
            for x, y in asked:
                self.hold_module(x, y)
            for results, (_, y) in zip(self.processor.infer_stream(x for x, _ in asked), asked, strict=True):
                self.hold(only(results), y)

    def hold_module(self, x: Array, y: Array) -> None:
        """Compare the module's answer."""
        theirs = self.module(torch.from_numpy(x).cuda()).cpu().numpy()
        self.wrong_module += not np.allclose(theirs, y, **stress.BOUNDS)

    def answer(self, calls: int) -> None:
        while calls > 0:
            if self._random.random() < 0.2:
                asked = self._random.choices(self.known, k=min(calls, 20))
                for results, (_, y) in zip(self.processor.infer_stream(self.handed(asked)), asked, strict=True):
                    self.keep(only(results), y)
                calls -= len(asked)
                continue
            x, y = self._random.choice(self.known)
            given = x.copy()
            out = np.empty_like(y) if self._random.random() < 0.3 else None
            found = only(self.processor.infer(given, out=out))
            given.fill(np.nan)
            self.keep(found, y)
            calls -= 1
            if self._random.random() < SHARE_OF_MODULE:
                self.hold_module(x, y)
        while self._kept:
            self.hold(*self._kept.popleft())

    def handed(self, asked: Sequence[tuple[Array, Array]]) -> Iterator[Array]:
        """Arrays that are spoilt as soon as the next one is asked for."""
        for x, _ in asked:
            given = x.copy()
            yield given
            given.fill(np.nan)

    def keep(self, found: Array, expected: Array) -> None:
        """Compare now, and again when later results have come."""
        self.hold(found, expected)
        self._kept.append((found, expected))
        if len(self._kept) > stress.KEPT:
            self.hold(*self._kept.popleft())

    def hold(self, found: Array, expected: Array) -> None:
        self.checks += 1
        self.wrong += not np.allclose(found, expected, **stress.BOUNDS)


def shared(evidence: Evidence, options: argparse.Namespace) -> None:
    """Many calls by several threads: nothing may be wrong, and memory stays flat.

    Raises:
        RuntimeError: results were wrong, or memory grew.
    """
    torch.manual_seed(0)
    model = stress.Network().cuda().eval()
    examples = stress.examples(model, options.shapes, "cuda")
    stress.prove_judge(examples)
    axis = t2e.Axis("n", 1, options.shapes // 2, options.shapes)
    artifact = t2e.build(t2e.export(model, examples[-1].x, {"x": {0: axis}}))
    known = [(one.x.cpu().numpy(), one.y.cpu().numpy()) for one in examples]
    gate = threading.Barrier(options.threads + 1)
    warm, calls = (-(-total // options.threads) for total in (options.warmup_calls, options.calls))
    looks: list[stress.Memory] = []
    with t2e.Processor(artifact) as processor:
        module = t2e.TRTModule(artifact)
        callers = [Caller(n, processor, module, known, (warm, calls), gate) for n in range(options.threads)]
        for caller in callers:
            caller.start()
        try:
            for _ in range(2):
                gate.wait()
                gate.wait()
                looks.append(stress.memory())
        except threading.BrokenBarrierError as broken:
            for caller in callers:
                caller.join(30)
            errors = [caller.error for caller in callers if caller.error is not None]
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), broken) from None
        for caller in callers:
            caller.join()
    wrong, theirs = (sum(getattr(caller, name) for caller in callers) for name in ("wrong", "wrong_module"))
    found: dict[str, float] = {
        "calls": calls * options.threads,
        "checks": sum(caller.checks for caller in callers),
        "wrong": wrong,
        "wrong_of_module": theirs,
        "threads": options.threads,
        "shapes": options.shapes,
        "device_growth_mib": (looks[1].device - looks[0].device) / MIB,
        "host_growth_mib": (looks[1].host - looks[0].host) / MIB,
    }
    for name, value in found.items():
        evidence.figure(f"processor.stress.{name}", value)
    evidence.samples["stress"] = [asdict(look) for look in looks]
    if wrong or theirs:
        raise RuntimeError(f"{wrong} results of the Processor and {theirs} of the module were wrong")
    if (grown := max(found["device_growth_mib"], found["host_growth_mib"])) > MOST_GROWTH_MIB:
        raise RuntimeError(f"memory grew by {grown:.1f} MiB, at most {MOST_GROWTH_MIB} are allowed")
