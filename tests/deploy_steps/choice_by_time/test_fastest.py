"""deploy(runtime="fastest") without a GPU: ONNX Runtime beside PyTorch in eager and compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.deploy_models import BATCH, Mlp, sample, seeded
from torch2engine.core.errors import InputError
from torch2engine.core.time_limit import TimeLimit
from torch2engine.deploy_steps.choice_by_time import fastest
from torch2engine.deployed.live.live_program import LIVE_PROGRAMS, MakeProgram

pytestmark = pytest.mark.filterwarnings("ignore:deploying to ONNX Runtime on the CPU:UserWarning")

EAGER = {"PyTorch in eager": LIVE_PROGRAMS["PyTorch in eager"]}


class Sums(nn.Module):
    """Sums along rows, for which ONNX Runtime takes several times as long as PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.0, 2048))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x * self.scale, 1)


class Counting(nn.Module):
    """It counts its calls in a buffer, and keeps a list."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.seen: list[int] = []
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(1)
        return self.layer(x)


class Uncopied(Mlp):
    """It refuses to be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
        raise TypeError("there is one of me")


class Spectrum(nn.Module):
    """An operator that no engine takes, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(self.layer(x).mT @ x + 10 * torch.eye(6)).tanh()


def deploy(
    monkeypatch: pytest.MonkeyPatch, programs: Mapping[str, MakeProgram], model: nn.Module, **options: Any
) -> Any:
    """Let these forms of PyTorch compete with ONNX Runtime."""
    monkeypatch.setattr(fastest, "LIVE_PROGRAMS", programs)
    options = {"dynamic_axes": BATCH, "sample_input": sample(4, 6), **options}
    return t2e.deploy(model, runtime="fastest", cache=False, progress=None, **options)


def outcomes(module: Any) -> dict[str, str]:
    """Why each candidate was taken or not, without figures that differ from run to run."""
    return {one.name: one.reason for one in module.report.tried}


def test_pytorch_answers_where_it_is_faster() -> None:
    """All candidates are compared and timed; the module says what it is, and the model is as it was."""
    model = Sums().train()
    x = torch.randn(256, 2048, generator=torch.Generator().manual_seed(0))
    axes = {"x": {0: t2e.Axis("batch", 1, 256, 256)}}
    state = torch.get_rng_state()
    phases: list[str] = []

    def progress(phase: str, step: int, steps: int, seconds: float) -> None:
        phases.append(phase)

    module = t2e.deploy(model, x, axes, runtime="fastest", cache=False, progress=progress)
    assert isinstance(module, t2e.LiveModule)
    report = module.report
    assert [one.name for one in report.tried] == ["ONNX Runtime", "PyTorch in eager", "torch.compile"]
    *timed, compiled = report.tried
    assert all(one.microseconds.keys() == {"batch 256"} for one in timed)
    assert compiled.microseconds or "C++ compiler" in compiled.reason  # which Inductor needs on the CPU
    assert not report.tried[0].is_chosen
    assert sum(one.is_chosen for one in report.tried) == 1
    assert [parity.subject for parity in report.parity][-1] == f"PyTorch vs {module.runtime}"
    assert report.verdict == "passed"
    assert report.notes[-1] == (
        f"{module.runtime} answers, since it is faster than the engine: it computes with the model's own weights, "
        "follows new values of them, and can't be saved"
    )
    assert "fastest" in report.seconds and "fastest" in phases
    assert [part.runs_in for part in report.parts] == [module.runtime]
    assert ["tried", "µs", "at", "batch", "256", "outcome"] in [line.split() for line in str(report).splitlines()]
    assert t2e.DeployReport.from_json(report.to_json(), None, None).tried == report.tried
    assert model.training and torch.equal(torch.get_rng_state(), state)
    for rows in (1, 7, 256):
        torch.testing.assert_close(module(x[:rows]), model(x[:rows]).detach(), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(module(x + 1), model(x + 1), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.scale.mul_(3)
    torch.testing.assert_close(module(x), model(x).detach(), rtol=1e-4, atol=1e-4)


def test_engine_answers_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the module that deploy() makes otherwise, and its report has the times."""
    module = deploy(monkeypatch, EAGER, seeded(Mlp))
    assert type(module) is t2e.ORTModule
    assert outcomes(module)["ONNX Runtime"] == "the fastest"
    assert all(one.microseconds for one in module.report.tried)
    assert len(module.report.parity) == 1


def test_candidate_that_fails_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't be made, one that answers otherwise, and one that takes too long; the engine answers."""

    def broken(module: nn.Module, limit: TimeLimit) -> Any:
        raise RuntimeError("no compiler\nand a long trace")

    def wrong(module: nn.Module, limit: TimeLimit) -> Any:
        return lambda x: module(x) + 0.01

    def slow(module: nn.Module, limit: TimeLimit) -> Any:
        def call(x: torch.Tensor) -> torch.Tensor:
            limit.check("a graph")
            return module(x)

        return call

    config = t2e.BuildConfig(optimize_seconds=0)
    module = deploy(monkeypatch, {"broken": broken, "wrong": wrong, "slow": slow}, seeded(Mlp), config=config)
    reasons = outcomes(module)
    assert reasons.pop("ONNX Runtime") == "nothing else can take its place"
    assert reasons["broken"] == "left out: RuntimeError: no compiler"
    assert reasons["wrong"].startswith("left out: ParityError: parity, PyTorch vs wrong: got ")
    assert reasons["slow"] == "left out: a graph would begin after the 0 s of BuildConfig.optimize_seconds"
    assert type(module) is t2e.ORTModule


def test_compiler_begins_nothing_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile asks before every graph; Dynamo's own error around that is not shown."""
    programs = {"torch.compile": LIVE_PROGRAMS["torch.compile"]}
    module = deploy(monkeypatch, programs, seeded(Mlp), config=t2e.BuildConfig(optimize_seconds=0))
    assert outcomes(module)["torch.compile"] == (
        "left out: the compilation of a further graph would begin after the 0 s of BuildConfig.optimize_seconds"
    )


def test_further_way_to_run_a_model_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is a function of the module; the contract of a call is kept around it."""

    def twice(module: nn.Module, limit: TimeLimit) -> Any:
        return lambda x: (module(x) + module(x)) / 2

    module = deploy(monkeypatch, {"twice": twice}, seeded(Mlp))
    assert set(outcomes(module)) == {"ONNX Runtime", "twice"}
    assert all(one.microseconds for one in module.report.tried)


def test_model_that_pytorch_cant_answer_for_is_left_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes into a buffer, can't be copied or only seems so, or has live parameters; nothing of it is changed."""
    counting = Counting()
    assert outcomes(deploy(monkeypatch, EAGER, counting))["PyTorch in eager"] == (
        "left out: its forward writes into calls"
    )
    assert counting.calls == 0 and counting.seen == []
    uncopied = seeded(Uncopied)
    assert outcomes(deploy(monkeypatch, EAGER, uncopied))["PyTorch in eager"] == (
        "left out: TypeError: there is one of me"
    )
    patched = seeded(Mlp)
    patched.forward = lambda x: patched.second(patched.first(x))
    assert outcomes(deploy(monkeypatch, EAGER, patched))["PyTorch in eager"] == (
        "left out: a copy of it calls Linear of the model itself"
    )
    live = deploy(monkeypatch, EAGER, seeded(Mlp), live_parameters=["second.bias"])
    assert outcomes(live)["PyTorch in eager"] == "left out: live parameters are inputs of an engine alone"


def test_inputs_of_another_type_than_the_models_are_left_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half engine whose inputs are halves has another call."""
    precision = t2e.Precision("fp16", low_io=True)
    module = deploy(monkeypatch, EAGER, seeded(Mlp), precision=precision, calibration=[sample(4, 6)])
    assert outcomes(module)["PyTorch in eager"] == "left out: the engine's input 'x' is float16, the model's float32"


def test_recording_and_examples_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine and PyTorch are compared on the same examples; where none is at an opt, the first one is timed."""
    examples = iter([sample(3, 6), sample(5, 6)])
    module = deploy(monkeypatch, EAGER, seeded(Mlp), sample_input=sample(2, 6), examples=examples)
    assert [set(one.microseconds) for one in module.report.tried] == [{"batch 2"}] * 2
    model = seeded(Mlp).eval()
    with t2e.record(model) as recording:
        model(sample(2, 6))
        model(sample(4, 6))
    monkeypatch.setattr(fastest, "LIVE_PROGRAMS", EAGER)
    recorded = t2e.deploy(recording, runtime="fastest", cache=False, progress=None)
    assert outcomes(recorded)["ONNX Runtime"] == "the fastest"


def test_model_in_parts_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fallback makes is timed beside PyTorch like a whole engine."""
    module = deploy(monkeypatch, EAGER, seeded(Spectrum), sample_input=sample(4, 6), dynamic_axes=None, fallback=True)
    assert list(outcomes(module)) == ["ONNX Runtime and PyTorch", "PyTorch in eager"]
    assert all(one.microseconds for one in module.report.tried), module.report
    x = sample(4, 6)
    torch.testing.assert_close(module(x), seeded(Spectrum)(x).detach(), rtol=1e-4, atol=1e-4)


def test_unknown_runtime_is_refused_with_all_words() -> None:
    """Only deploy() knows this one: what was saved is never PyTorch itself."""
    with pytest.raises(InputError) as caught:
        t2e.deploy(Mlp(), sample(4, 6), runtime="fast")  # type: ignore[call-overload]  # that is the point
    assert str(caught.value) == (
        "runtime: got 'fast'; expected one of 'tensorrt', 'onnxruntime', 'auto', 'fastest'; did you mean 'fastest'?"
    )
    with pytest.raises(InputError, match="expected one of None, 'tensorrt', 'onnxruntime', 'auto'; "):
        t2e.load("model.t2e", runtime="fastest")  # type: ignore[call-overload]  # that is the point
