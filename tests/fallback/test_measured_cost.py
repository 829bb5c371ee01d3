"""fallback="faster", with a clock that says what each test needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from torch import fx, nn

import torch2engine as t2e
from torch2engine.deployed.timing import Timing
from torch2engine.fallback import graph_compiler
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.fixed_engines import FixedEngines
from torch2engine.fallback.graph_layout import GraphLayout
from torch2engine.fallback.measured_cost import check_whole, find_slow_engine, find_slow_parts
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
    assert check_whole(list, list, CPU, clock(module=103.0, model=100.0)) == "103 µs a call, where PyTorch takes 100 µs"
    with pytest.raises(
        t2e.BuildError, match=r"got 104 µs a call, where PyTorch takes 100 µs; expected at most 3% more"
    ):
        check_whole(list, list, CPU, clock(module=104.0, model=100.0))


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
