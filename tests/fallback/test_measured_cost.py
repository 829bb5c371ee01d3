"""fallback="faster", with a clock that says what each test needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import fx, nn

import torch2engine as t2e
from torch2engine.deployed.timing import Timing
from torch2engine.fallback import deploy_in_parts, graph_compiler, torch_compile
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.fixed_engines import FixedEngines
from torch2engine.fallback.graph_layout import GraphLayout
from torch2engine.fallback.measured_cost import check_whole, find_slow_engine, find_slow_parts, least_times
from torch2engine.fallback.part_runner import PartRunner
from torch2engine.fallback.partition import repeat_cut
from torch2engine.fallback.run_record import RunRecord
from torch2engine.fallback.torch_compile import make_compiler

CPU = torch.device("cpu")


def clock(**microseconds: float) -> Callable[[Mapping[str, Callable[[], object]], torch.device], Mapping[str, Timing]]:
    """A measurement that calls everything once, and then tells these times."""

    def tell(candidates: Mapping[str, Callable[[], object]], device: torch.device) -> Mapping[str, Timing]:
        for call in candidates.values():
            call()
        return {name: Timing(host_us=microseconds[name], host_p95_us=0.0) for name in candidates}

    return tell


class Two(nn.Module):
    """Two operators."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any tensor → one of its shape."""
        return torch.ops.aten.sin.default(torch.ops.aten.exp.default(x))


def cut_in_two(runners: dict[str, PartRunner]) -> fx.GraphModule:
    """The model with each operator as a part; no part has an engine yet."""
    graph = fx.symbolic_trace(Two())
    for node in graph.graph.nodes:
        node.meta["val"] = torch.rand(3)

    def make_runner(number: int, part: fx.GraphModule, layout: GraphLayout) -> PartRunner:
        runner = PartRunner(part, layout, FixedEngines(part, layout), RunRecord(), "")
        runners[f"part_{number}"] = runner
        return runner

    names = [node.name for node in graph.graph.nodes if node.op == "call_function"]
    return repeat_cut(graph, [], [[name] for name in names], make_runner)


def test_part_that_pytorch_answers_sooner_is_named_with_both_times() -> None:
    """The reason that the report shows is the measured one."""
    runners: dict[str, PartRunner] = {}
    graph = cut_in_two(runners)
    slow = find_slow_parts(graph, runners, [torch.rand(3)], CPU, clock(engine=35.0, PyTorch=20.0))
    assert slow == dict.fromkeys(["part_0", "part_1"], "its engine takes 35 µs a call, PyTorch 20 µs")
    assert find_slow_parts(graph, runners, [torch.rand(3)], CPU, clock(engine=20.0, PyTorch=20.0)) == {}
    runners["part_0"].leave_in_pytorch("another reason")
    assert list(find_slow_parts(graph, runners, [torch.rand(3)], CPU, clock(engine=3.0, PyTorch=2.0))) == ["part_1"]


def test_module_that_is_slower_than_its_model_is_refused() -> None:
    """Three in a hundred are allowed, and no more."""
    kept = check_whole("model in parts", list, list, CPU, clock(candidate=103.0, model=100.0))
    assert kept == "103 µs a call, where PyTorch takes 100 µs"
    with pytest.raises(
        t2e.BuildError, match=r"got 104 µs a call, where PyTorch takes 100 µs; expected at most 3% more"
    ):
        check_whole("model in parts", list, list, CPU, clock(candidate=104.0, model=100.0))


@pytest.mark.parametrize(
    ("medians", "least", "count"),
    [
        ([(50.0, 100.0)], (50.0, 100.0), 1),  # clear at once
        ([(120.0, 100.0), (121.0, 100.0)], (120.0, 100.0), 2),  # a refusal is measured twice
        ([(120.0, 100.0), (90.0, 100.0)], (90.0, 100.0), 2),  # something else was busy meanwhile
        ([(104.0, 101.0), (102.0, 100.0), (102.5, 99.0)], (102.0, 99.0), 3),
    ],
)
def test_times_near_the_bound_are_measured_again_and_the_least_count(
    medians: list[tuple[float, float]], least: tuple[float, float], count: int
) -> None:
    """Other work on the machine only adds to a time, and one unlucky measurement decides nothing."""
    measured: list[int] = []

    def tell(candidates: Mapping[str, Callable[[], object]], device: torch.device) -> Mapping[str, Timing]:
        times = dict(zip(candidates, medians[len(measured)], strict=True))
        measured.append(1)
        return {name: Timing(host_us=time, host_p95_us=0.0) for name, time in times.items()}

    assert least_times(list, list, CPU, tell) == least
    assert len(measured) == count


class SwitchNoter(nn.Module):
    """Notes the float32 switch at each call. An operator without an engine is between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        self.seen: list[bool] = []

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        """Rows [B, 8] → [B, 2]."""
        self.seen.append(torch.backends.cudnn.allow_tf32)
        return self.head(torch.special.bessel_j0(self.body(x)) * scale)


def test_model_in_parts_is_timed_as_its_user_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are called with the user's arguments, and eager keeps the fast float32 of the user's switches."""
    asked: list[tuple[object, object]] = []
    seen: list[bool] = []

    def tell(subject: str, candidate: Callable[[], object], model: Callable[[], object], device: torch.device) -> str:
        network.seen.clear()
        asked.append((candidate(), model()))
        seen.extend(network.seen)  # which deploy() puts back, as all that the model holds
        return f"{subject} is timed"

    monkeypatch.setattr(deploy_in_parts, "check_whole", tell)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    network = SwitchNoter().eval()
    module = t2e.deploy(
        network, t2e.Inputs(torch.rand(3, 8), scale=2.0), runtime="onnxruntime", fallback="faster", cache=False
    )
    assert seen == [True]
    assert module.report is not None
    assert "model in parts is timed" in module.report.notes
    (answers,) = asked
    torch.testing.assert_close(answers[0], answers[1])


@pytest.mark.parametrize("eager_us", [20.0, 15.0])
def test_compiled_model_is_timed_as_a_whole_when_all_its_engines_are_built(
    monkeypatch: pytest.MonkeyPatch, eager_us: float
) -> None:
    """No engine is timed before the last one is built; a whole that is slower than eager is refused with both times."""
    steps: list[str] = []

    def tell(candidates: Mapping[str, Callable[[], object]], device: torch.device) -> Mapping[str, Timing]:
        steps.append("/".join(candidates))
        for call in candidates.values():
            call()
        times = {"engine": 10.0, "PyTorch": 11.0, "candidate": 20.0, "model": eager_us}
        return {name: Timing(host_us=times[name], host_p95_us=0.0) for name in candidates}

    def measure_engine(runner: PartRunner, values: Sequence[Any], device: torch.device) -> str:
        return find_slow_engine(runner, values, device, tell)

    def measure_whole(
        subject: str, candidate: Callable[[], object], model: Callable[[], object], device: torch.device
    ) -> str:
        return check_whole(subject, candidate, model, device, tell)

    def deploy_noted(*arguments: Any, **options: Any) -> Any:
        steps.append("built")
        return t2e.deploy(*arguments, **options)

    monkeypatch.setattr(graph_compiler, "find_slow_engine", measure_engine)
    monkeypatch.setattr(torch_compile, "check_whole", measure_whole)
    monkeypatch.setattr(torch_compile, "deploy", deploy_noted)
    layers = [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).eval() for _ in range(2)]

    def model(x: torch.Tensor) -> torch.Tensor:
        rows = layers[0](x)
        torch._dynamo.graph_break()
        return layers[1](rows).sin().exp()

    x = torch.rand(2, 4)
    if eager_us == 20.0:
        compiled = t2e.compile_if_faster(model, x, options={"cache": False})
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
    else:
        said = r"compiled model: got 20 µs a call, where PyTorch takes 15 µs; expected at most 3% more"
        with pytest.raises(t2e.BuildError, match=said):
            t2e.compile_if_faster(model, x, options={"cache": False})
    assert steps[:5] == ["built", "built", "engine/PyTorch", "engine/PyTorch", "candidate/model"]
    assert set(steps[5:]) == {"candidate/model"}  # near the bound, or to be refused: measured again


def test_compiled_function_without_tensors_is_refused() -> None:
    """There is no device to time it on."""
    with pytest.raises(t2e.InputError, match="sample_input: got no tensor; expected at least one"):
        t2e.compile_if_faster(lambda count: count + 1, (3,))


@pytest.mark.parametrize(
    ("engine_us", "runs_in", "reason"),
    [(35.0, "PyTorch", "its engine takes 35 µs a call, PyTorch 20 µs"), (20.0, "ONNX Runtime", "")],
)
def test_compiled_graph_stays_in_pytorch_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, engine_us: float, runs_in: str, reason: str
) -> None:
    """The engine is timed once, at the first call, which it still answers; all answers are right."""
    measured = partial(find_slow_engine, measure_both=clock(engine=engine_us, PyTorch=20.0))
    asked: list[PartRunner] = []
    monkeypatch.setattr(graph_compiler, "find_slow_engine", lambda *call: asked.append(call[0]) or measured(*call))
    model, record = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).eval(), RunRecord()
    options = CompileOptions(only_faster=True, cache=False)
    compiled = torch.compile(model, backend=make_compiler(options, record).compile)
    with torch.no_grad():
        for x in torch.rand(3, 2, 4):
            torch.testing.assert_close(compiled(x), model(x))
    assert [(part.runs_in, part.reason) for part in record.parts] == [(runs_in, reason)]
    assert len(asked) == 1


def test_unknown_word_for_fallback_is_refused() -> None:
    """A misspelt word is no True."""
    with pytest.raises(t2e.InputError, match=r"fallback: got 'fast'; expected one of False, True, 'faster'"):
        t2e.deploy(nn.Linear(2, 2), torch.rand(1, 2), runtime="onnxruntime", fallback="fast")
