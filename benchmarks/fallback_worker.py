"""One model of the benchmark `fallback`, in a process of its own: made, deployed in parts, then timed beside eager.

Enters: what is timed, by its name. Leaves: reports to `phased_jobs`. Apart because engines take long to make, which
several processes do at the same time, while a GPU that is timed must be free of others. What decides by time, such as
deploy(fallback="faster"), builds its engines beside the other processes too, and waits before its first measurement.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks.evidence import Evidence
from benchmarks.fallback_models import OWN, PARTS, Chain, block, own_model
from benchmarks.phased_jobs import Turn, say, say_done
from benchmarks.zoo_fallback import COMPILE, WAYS, Answered, answer_compiled
from benchmarks.zoo_fallback import PARTS as IN_PARTS
from benchmarks.zoo_trial import ZooTrial
from tests.zoo.models import ZOO
from torch2engine.core.errors import BuildError, Torch2EngineError
from torch2engine.core.pytree import Inputs
from torch2engine.deployed.timing import Timing, measure
from torch2engine.fallback import measured_cost
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.measured_cost import least_times
from torch2engine.fallback.run_record import RunRecord
from torch2engine.fallback.torch_compile import compile_beside_eager

__all__ = ["BOUNDARY", "FASTER", "main", "study"]

BOUNDARY = "boundary"
FASTER = "fallback='faster'"

Call = Callable[[], object]
Report = dict[str, Any]


def study(options: argparse.Namespace, turn: Turn) -> Report:
    """Prepare a subject, wait for its turn, measure it, and tell what was found.

    Args:
        options: `subject` is `BOUNDARY`, one of `OWN`, or "zoo." with the name of a model; `way` is the one that
            answered a model of the zoo in the last sweep; `wrong` says what was wrong there with its engines, or is
            ""; `device`; `rounds`.
        turn: to be timed.
    """
    device = torch.device(options.device)
    with _measurements_wait(turn):
        if options.subject == BOUNDARY:
            return _boundary(device, options.rounds, turn)
        if options.subject in OWN:
            return _own(options.subject, Beside(device, options.rounds, turn))
        return _from_zoo(options, Beside(device, options.rounds, turn))


@contextmanager
def _measurements_wait(turn: Turn) -> Generator[None]:
    """Let whatever decides by time wait for the turn before its first measurement, when its engines are built."""
    untyped: Any = measured_cost
    measure_now = untyped.measure

    def measure_in_turn(*args: Any, **kwargs: Any) -> Mapping[str, Timing]:
        turn.wait()
        return measure_now(*args, **kwargs)

    untyped.measure = measure_in_turn
    try:
        yield
    finally:
        untyped.measure = measure_now


def _boundary(device: torch.device, rounds: int, turn: Turn) -> Report:
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
    turn.wait()
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
    return {"figures": found.figures}


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


def _own(name: str, beside: Beside) -> Report:
    """A model of this benchmark."""
    model, x = own_model(name, beside.device)
    try:
        module = _deploy(model, x, fallback="faster")
    except BuildError as error:
        return _refusal(name, error)
    torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-5)
    return beside.report(name, FASTER, partial(module, x), partial(model, x))


def _from_zoo(options: argparse.Namespace, beside: Beside) -> Report:
    """A model that no single engine answers: in parts if that is possible, else in the way of the last sweep."""
    name = options.subject.removeprefix("zoo.")
    trial = ZooTrial.make(ZOO[name], "gpu" if options.device == "cuda" else "cpu")
    way, why_not = IN_PARTS, options.wrong
    try:
        answered = None if why_not else _in_parts(trial)
    except BuildError as error:
        return _refusal(name, error)
    except Torch2EngineError as error:
        if options.way == IN_PARTS:
            raise
        answered, why_not = None, str(error).partition("\n")[0]
    report: Report = {"not_in_parts": {name: why_not}} if why_not else {}
    if answered is None:
        way = options.way
        try:
            answered = _compiled(trial) if way == COMPILE else WAYS[way](trial)
        except BuildError as error:
            return report | _refusal(name, error)
    report |= beside.report(
        name, FASTER if way == IN_PARTS else way, answered.call, partial(trial.model, **trial.sample)
    )
    report["figures"][f"fallback.{name}.engine_share"] = answered.explanation.engine_share
    report["left_in_pytorch"] = {name: [part.reason for part in answered.explanation.parts if part.reason]}
    return report


def _in_parts(trial: ZooTrial) -> Answered:
    """Deploy a model with fallback="faster", and compare it at all sizes.

    Raises:
        BuildError: it is slower than eager.
        Torch2EngineError: as `deploy`.
    """
    module = trial.deploy(fallback="faster")
    trial.compare(module)
    return Answered(module.explain(trial.sample), partial(module, **trial.sample))


def _compiled(trial: ZooTrial) -> Answered:
    """Compile a model as `compile_if_faster` does, and compare it.

    Raises:
        BuildError: it is slower than eager.
    """
    record = RunRecord()
    options = CompileOptions(cache=False, only_faster=True)
    compiled = compile_beside_eager(trial.model, Inputs(**trial.sample), options, record)
    return answer_compiled(trial, compiled, record, others=[])


def _refusal(name: str, error: BuildError) -> Report:
    """What the parent takes over of a model that is slower than eager.

    Raises:
        BuildError: it was refused for another reason.
    """
    if "µs a call, where PyTorch takes" not in error.got:
        raise error
    return {"refused": {name: str(error)}}


@dataclass(frozen=True)
class Beside:
    """Times what answers in a model's place beside the model.

    Args:
        device: where they run.
        rounds: of each measurement.
        turn: to be timed.
    """

    device: torch.device
    rounds: int
    turn: Turn

    def report(self, name: str, way: str, ours: Call, eager: Call) -> Report:
        """Measure, as often as the package does, and tell what the parent takes over.

        Args:
            name: of the model.
            way: how it is answered.
            ours, eager: one call of each.
        """
        self.turn.wait()
        ours_us, eager_us = least_times(ours, eager, self.device, self._measure)
        return {"figures": {f"fallback.{name}.ratio_to_eager": ours_us / eager_us}, "ways": {name: way}}

    def _measure(self, candidates: Mapping[str, Call], device: torch.device) -> Mapping[str, Timing]:
        return measure(candidates, device=device, rounds=self.rounds)


def _microseconds(timing: Timing) -> float:
    """The time of a call where calls follow each other."""
    return max(timing.host_us, timing.device_us or 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subject", required=True, help="boundary, a model of this benchmark, or zoo.NAME")
    parser.add_argument("--way", default="", help="which way answered the model of the zoo in the last sweep")
    parser.add_argument("--wrong", default="", help="what was wrong there with its engines")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.device == "cuda":
        _script.require_gpu()
    torch.manual_seed(0)
    turn = Turn()
    with torch.no_grad():
        report = study(options, turn)
    turn.wait()
    say(report)
    say_done()


if __name__ == "__main__":
    main()
