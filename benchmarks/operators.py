"""ATen's operators, by PyTorch's own samples: how many become an engine, and how the others are refused.

Enters: nothing. Leaves: `operators.json`: each case's outcome, and the shares. Needs no GPU: an answer is ONNX
Runtime's, and TensorRT builds the engine without running it. Apart from the zoo because a model shows the operators
that it has, and these are all.
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks._script import options, run
from benchmarks.evidence import REPOSITORY, Evidence
from benchmarks.operator_samples import reason_to_refuse

__all__ = ["figures_of"]

TIMEOUT_S = 90.0
START_TIMEOUT_S = 180.0
FOLDERS = ("exporter", "builder", "capture", "parity", "onnx_graph")


@dataclass(frozen=True)
class _Case:
    operator: str
    dynamic: bool

    @property
    def name(self) -> str:
        return f"{self.operator} ({'dynamic' if self.dynamic else 'static'})"


class _Worker:
    """A process that answers one case after another; it is started anew after a crash or a timeout."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def operators(self) -> list[str]:
        """The names of the operators that PyTorch has samples of."""
        return self._start()["operators"]

    def ask(self, case: _Case) -> dict[str, str]:
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        request = {"operator": case.operator, "dynamic": case.dynamic}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._read(TIMEOUT_S)
        except (BrokenPipeError, EOFError):
            self.stop()
            return {"outcome": "crashed", "step": "", "detail": "the process died"}
        except TimeoutError:
            self.stop()
            return {"outcome": "timeout", "step": "", "detail": f"no answer in {TIMEOUT_S:g} s"}

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.operator_worker"]
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self._read(START_TIMEOUT_S)

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise TimeoutError
        line = self._process.stdout.readline()
        if not line:
            raise EOFError
        return json.loads(line)


def figures_of(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The figures of a run; {case: its outcome}. A crash or a case without end counts as untyped."""
    everyone = Counter(outcome["outcome"] for outcome in outcomes.values())
    should_pass = {name: outcome for name, outcome in outcomes.items() if not reason_to_refuse(_operator(name))}
    counts = Counter(outcome["outcome"] for outcome in should_pass.values())
    return {
        "operators.cases": counts.total(),
        "operators.names": len({_operator(name).partition(".")[0] for name in should_pass}),
        "operators.pass_share": counts["right"] / max(counts.total(), 1),
        "operators.refused": counts["refused"],
        "operators.never": everyone.total() - counts.total(),
        "operators.untyped": everyone["untyped"] + everyone["crashed"] + everyone["timeout"],
        "operators.wrong": everyone["wrong"],
    }


def _operator(case: str) -> str:
    return case.partition(" (")[0]


def ask_all(cases: Iterable[_Case], workers: int) -> dict[str, dict[str, Any]]:
    """{case: outcome} of the cases for which PyTorch has a sample."""
    waiting: queue.SimpleQueue[_Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    outcomes: dict[str, dict[str, Any]] = {}

    def work() -> None:
        worker = _Worker()
        try:
            while not waiting.empty():
                try:
                    case = waiting.get_nowait()
                except queue.Empty:
                    return
                started = time.monotonic()
                outcome = worker.ask(case)
                if outcome["outcome"] != "none":
                    outcomes[case.name] = {**outcome, "seconds": round(time.monotonic() - started, 2)}
                    print(f"{case.name}: {outcome['outcome']} {outcome['step']}", flush=True)
        finally:
            worker.stop()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(sorted(outcomes.items()))


def _chosen_cases(names: Sequence[str], pattern: str, shapes: Sequence[str]) -> list[_Case]:
    chosen = [name for name in names if re.search(pattern, name)]
    return [_Case(name, shape == "dynamic") for name in chosen for shape in shapes]


def body(evidence: Evidence, chosen: argparse.Namespace) -> None:
    """Ask every case, and record what came of each."""
    worker = _Worker()
    names = worker.operators()
    worker.stop()
    outcomes = ask_all(_chosen_cases(names, chosen.only, chosen.shapes), chosen.workers)
    for name, value in figures_of(outcomes).items():
        evidence.figure(name, value)
    evidence.samples["outcomes"] = outcomes
    evidence.samples["never"] = {name: reason_to_refuse(name) for name in names if reason_to_refuse(name)}


def main() -> None:
    """Run as a script."""
    parser = options(__doc__)
    parser.add_argument("--only", default="", help="regular expression of the operators' names")
    parser.add_argument("--shapes", nargs="+", default=["static", "dynamic"], choices=["static", "dynamic"])
    parser.add_argument("--workers", type=int, default=2)
    run("operators", body, parser, FOLDERS, needs_gpu=False)


if __name__ == "__main__":
    main()
