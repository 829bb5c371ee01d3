"""One model of the benchmark `fallback`, in a process of its own: made, deployed in parts, then timed beside eager.

Enters: what is timed, by its name. Leaves: reports to `phased_jobs`. Apart because engines take long to make, which
several processes do at the same time, while a GPU that is timed must be free of others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks.evidence import Evidence
from benchmarks.fallback_models import OWN, PARTS, Chain, block, own_model
from benchmarks.phased_jobs import say, say_done, wait_for_turn
from benchmarks.zoo_fallback import COMPILE, WAYS, Answered, answer_compiled
from benchmarks.zoo_fallback import PARTS as IN_PARTS
from benchmarks.zoo_trial import ZooTrial
from tests.zoo.models import ZOO
from torch2engine.core.errors import BuildError, Torch2EngineError
from torch2engine.deployed.timing import Timing, measure

__all__ = ["BOUNDARY", "FASTER", "main", "study"]

BOUNDARY = "boundary"
FASTER = "fallback='faster'"
MOST_RATIO = 1.03  # what fallback="faster" promises

Call = Callable[[], object]
Study = Generator[dict[str, Any], None, None]
"""Prepares before its first report, which is empty; then it measures, and reports."""


def study(options: argparse.Namespace) -> Study:
    """The study of a subject.

    Args:
        options: `subject` is `BOUNDARY`, one of `OWN`, or "zoo." with the name of a model; `way` is the one that
            answered a model of the zoo in the last sweep; `wrong` says what was wrong with its single engine there, or
            is ""; `device`; `rounds`.
    """
    if options.subject == BOUNDARY:
        return _boundary(torch.device(options.device), options.rounds)
    if options.subject in OWN:
        return _own(options.subject, torch.device(options.device), options.rounds)
    return _from_zoo(options)


def _boundary(device: torch.device, rounds: int) -> Study:
    """What a part costs beside its engine and the operators around it."""
    custom, x = own_model("chain", device)
    assert isinstance(custom, Chain)
    own = Chain(PARTS, block, torch.special.bessel_j0).to(device).eval()
    own.load_state_dict(custom.state_dict())
    plans: dict[str, tuple[Chain, dict[str, Any]]] = {"parts": (own, {}), "custom": (custom, {})}
    if device.type == "cuda":
        plans["no_graphs"] = own, {"runtime_config": t2e.RuntimeConfig(cuda_graphs=False)}
        plans["custom_graphs"] = custom, {"runtime_config": t2e.RuntimeConfig(cuda_graphs=True)}
    modules = {name: _all_in_engines(model, x, options) for name, (model, options) in plans.items()}
    engines = [_deploy(part, x) for part in custom.parts]
    yield {}
    calls: dict[str, Call] = {name: partial(module, x) for name, module in modules.items()}
    calls |= {
        "eager": partial(own, x),
        "engines": lambda: [engine(x) for engine in engines],
        "operators": lambda: [own.between(x) for _ in range(PARTS)],
        "custom_operators": lambda: [custom.between(x) for _ in range(PARTS)],
    }
    timings = measure(calls, device=device, rounds=rounds)
    found = Evidence()
    for name, timing in timings.items():
        _script.record(found, f"fallback.chain.{name}", timing)
    for name, (model, _) in plans.items():
        operators = "operators" if model is own else "custom_operators"
        rest = _microseconds(timings["engines"]) + _microseconds(timings[operators])
        cost = (_microseconds(timings[name]) - rest) / PARTS
        found.figure("boundary_us" if name == "parts" else f"boundary_{name}_us", cost)
    yield {"figures": found.figures}


def _deploy(model: nn.Module, x: torch.Tensor, **options: Any) -> Any:
    """Deploy for the input's device."""
    runtime = "onnxruntime" if x.device.type == "cpu" else "tensorrt"
    return t2e.deploy(model, x, runtime=runtime, progress=None, **options)


def _all_in_engines(model: nn.Module, x: torch.Tensor, options: dict[str, Any]) -> Any:
    """The model in parts, each of them an engine, after a comparison."""
    module = _deploy(model, x, fallback=True, **options)
    explanation = module.explain(x)
    if [part.runs_in == "PyTorch" for part in explanation.parts] != [False] * PARTS:
        raise AssertionError(f"expected {PARTS} engines: {explanation}")
    torch.testing.assert_close(module(x), model(x), rtol=1e-3, atol=1e-4)
    return module


def _own(name: str, device: torch.device, rounds: int) -> Study:
    """A model of this benchmark."""
    model, x = own_model(name, device)
    module = _deploy(model, x, fallback=True)
    torch.testing.assert_close(module(x), model(x), rtol=1e-2, atol=1e-3)
    yield {}
    pair = Pair(name, partial(module, x), partial(model, x), device, rounds)
    yield pair.as_faster_leaves_it(lambda: partial(_deploy(model, x, fallback="faster"), x))


def _from_zoo(options: argparse.Namespace) -> Study:
    """A model that no single engine answers: in parts if that is possible, else in the way of the last sweep."""
    name = options.subject.removeprefix("zoo.")
    trial = ZooTrial.make(ZOO[name], "gpu" if options.device == "cuda" else "cpu")
    way, answered, why_not = _answered(trial, options.way, options.wrong)
    report: dict[str, Any] = {"not_in_parts": {name: why_not}} if why_not else {}
    yield {}
    eager = partial(trial.model, **trial.sample)
    pair = Pair(name, answered.call, eager, torch.device(options.device), options.rounds)
    if way == IN_PARTS:
        report |= pair.as_faster_leaves_it(lambda: partial(trial.deploy(fallback="faster"), **trial.sample))
    else:
        report |= pair.report(pair.ratio(), way)
    report["figures"][f"fallback.{name}.engine_share"] = answered.explanation.engine_share
    report["left_in_pytorch"] = {name: [part.reason for part in answered.explanation.parts if part.reason]}
    yield report


def _answered(trial: ZooTrial, way: str, wrong: str) -> tuple[str, Answered, str]:
    """The way that answers a model, its answers, and why the model is not in parts; "" if it is."""
    if not wrong:
        try:
            return IN_PARTS, WAYS[IN_PARTS](trial), ""
        except Torch2EngineError as error:
            if way == IN_PARTS:
                raise
            wrong = str(error).partition("\n")[0]
    answered = answer_compiled(trial, [], only_faster=True) if way == COMPILE else WAYS[way](trial)
    return way, answered, wrong


@dataclass(frozen=True)
class Pair:
    """A module and its model, to be timed side by side.

    Args:
        name: of the model.
        ours, eager: one call of each.
        device: where they run.
        rounds: of the measurement.
    """

    name: str
    ours: Call
    eager: Call
    device: torch.device
    rounds: int

    def ratio(self) -> float:
        """Our time over eager's."""
        timings = measure({"ours": self.ours, "eager": self.eager}, device=self.device, rounds=self.rounds)
        return _microseconds(timings["ours"]) / _microseconds(timings["eager"])

    def as_faster_leaves_it(self, deploy_faster: Callable[[], Call]) -> dict[str, Any]:
        """Measure what fallback="faster" makes, or report why it refuses.

        Its own measurement needs a free GPU, so it has its turn here; but only where not every engine is worth it: if
        all of them together keep the promise, it takes the module.

        Args:
            deploy_faster: deploys anew.
        """
        ratio = self.ratio()
        if ratio <= MOST_RATIO:
            return self.report(ratio, FASTER)
        with_all_engines = {f"fallback.{self.name}.ratio_with_all_engines": ratio}
        try:
            chosen = replace(self, ours=deploy_faster())
        except BuildError as error:
            return {"figures": with_all_engines, "refused": {self.name: str(error)}}
        report = self.report(chosen.ratio(), FASTER)
        return {**report, "figures": report["figures"] | with_all_engines}

    def report(self, ratio: float, way: str) -> dict[str, Any]:
        """What the parent takes over."""
        return {"figures": {f"fallback.{self.name}.ratio_to_eager": ratio}, "ways": {self.name: way}}


def _microseconds(timing: Timing) -> float:
    """The time of a call where calls follow each other."""
    return max(timing.host_us, timing.device_us or 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subject", required=True, help="boundary, a model of this benchmark, or zoo.NAME")
    parser.add_argument("--way", default="", help="which way answered the model of the zoo in the last sweep")
    parser.add_argument("--wrong", default="", help="what was wrong there with its single engine")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.device == "cuda":
        _script.require_gpu()
    torch.manual_seed(0)
    with torch.no_grad():
        steps = study(options)
        next(steps)
        wait_for_turn()
        for report in steps:
            say(report)
    say_done()


if __name__ == "__main__":
    main()
