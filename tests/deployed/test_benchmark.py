"""`torch2engine.deployed.benchmark`: what is timed, in which order, after which comparison, and what is refused."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.deploy_models import deploy, mlp, nested, nested_inputs, sample, seeded
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import DeviceError, InputError, InstallationError, ParityError, ShapeError
from torch2engine.deployed.benchmark import BenchmarkReport, BenchmarkRow, Timing, benchmark, measure

QUICK: dict[str, Any] = {"rounds": 2, "calls": 3, "warmup": 1}


class Result:
    """Something whose life can be watched."""


def recorder(calls: list[str], *names: str) -> dict[str, Callable[[], object]]:
    """Callables that write down their names."""
    return {name: lambda name=name: calls.append(name) for name in names}


# measure


def test_every_candidate_has_one_turn_in_every_round() -> None:
    """A drift hits all candidates alike: no one is timed twice before each other one has been timed."""
    calls: list[str] = []
    measure(recorder(calls, "a", "b", "c"), device="cpu", rounds=20, calls=2, warmup=0)
    turns = [calls[start : start + 2] for start in range(0, len(calls), 2)]
    assert all(first == second for first, second in turns)
    rounds = [tuple(turn[0] for turn in turns[start : start + 3]) for start in range(0, len(turns), 3)]
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 2


def test_order_of_the_result_is_the_candidates() -> None:
    """Whatever the order of the turns, the answer comes in the caller's."""
    assert list(measure(recorder([], "z", "a", "m"), device="cpu", **QUICK)) == ["z", "a", "m"]


class Clock:
    """Stands for the module `time` in what measures: time passes only when a candidate sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that no other load of the machine moves."""
    clock = Clock()
    monkeypatch.setattr("torch2engine.deployed.timing.time", clock)
    return clock


def test_warm_up_comes_first_and_is_not_counted(clock: Clock) -> None:
    """Calls are exactly warm-up plus rounds times calls, and a slow first call leaves no trace."""
    calls: list[int] = []

    def slow_at_first() -> None:
        calls.append(1)
        if len(calls) <= 2:
            clock.sleep(0.05)

    timing = measure({"a": slow_at_first}, device="cpu", rounds=3, calls=5, warmup=2)["a"]
    assert len(calls) == 2 + 3 * 5
    assert timing.host_p95_us == 0
    assert (timing.calls, timing.rounds) == (5, 3)


def test_host_time_is_what_a_call_takes(clock: Clock) -> None:
    """A call of 2 ms takes 2 ms by the median, and by the 95th percentile."""
    timing = measure({"nap": lambda: clock.sleep(0.002)}, device="cpu", rounds=3, calls=5, warmup=0)["nap"]
    assert timing.host_us == pytest.approx(2000)
    assert timing.host_p95_us == pytest.approx(2000)
    assert timing.device_us is None
    assert timing.device_p95_us is None


def test_percentile_sees_what_the_median_does_not(clock: Clock) -> None:
    """One call in ten that is slow shows in the 95th percentile alone."""
    calls: list[int] = []

    def hiccup() -> None:
        calls.append(1)
        clock.sleep(0.01 if len(calls) % 10 == 0 else 0.0001)

    timing = measure({"a": hiccup}, device="cpu", rounds=2, calls=50, warmup=0)["a"]
    assert timing.host_us == pytest.approx(100)
    assert timing.host_p95_us == pytest.approx(10_000)


def test_calls_are_chosen_by_how_long_they_take(clock: Clock) -> None:
    """Short calls are repeated, 200 times at most; long ones hardly."""
    timings = measure(
        {"short": lambda: None, "long": lambda: clock.sleep(0.006)}, device="cpu", rounds=1, calls=None, warmup=1
    )
    assert timings["short"].calls == 200
    assert timings["long"].calls == 1


def test_result_is_held_until_the_next_call_has_returned() -> None:
    """As in `y = module(x)`, so that memory is reused as it is for a user."""
    made: list[weakref.ref[Result]] = []
    alive: list[int] = []

    def make() -> Result:
        alive.append(sum(reference() is not None for reference in made))
        result = Result()
        made.append(weakref.ref(result))
        return result

    measure({"a": make}, device="cpu", rounds=1, calls=5, warmup=0)
    assert alive == [0, 1, 1, 1, 1]
    assert not any(reference() for reference in made)


def test_collector_waits_and_goes_on_afterwards() -> None:
    """No collection falls into somebody's turn, and the switch is put back, also after an error."""
    seen: list[bool] = []
    measure({"a": lambda: seen.append(gc.isenabled())}, device="cpu", **QUICK)
    assert set(seen) == {False}
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure({"a": lambda: 1 / 0}, device="cpu", **QUICK)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("candidates", "options", "text"),
    [
        ([], {}, "candidates: got none; expected at least one callable; pass {'name': callable}"),
        (["a"], {"rounds": 0}, "rounds: got 0; expected an int of at least 1; pass such a number"),
        (["a"], {"calls": True}, "calls: got True; expected an int of at least 1; pass such a number"),
        (["a"], {"warmup": -1}, "warmup: got -1; expected an int of at least 0; pass such a number"),
        (["a"], {"streams": {"b": None}}, "streams: got 'b'; expected 'a'; name candidates"),
        (["a"], {"streams": {"a": None}}, "streams: got streams on the CPU; expected none; leave them out"),
    ],
)
def test_what_can_not_be_measured_is_refused(candidates: list[str], options: dict[str, Any], text: str) -> None:
    """Before anything is called, with the reason."""
    calls: list[str] = []
    with pytest.raises(InputError) as caught:
        measure(recorder(calls, *candidates), device="cpu", **options)
    assert str(caught.value) == text
    assert calls == []


def test_bottleneck_is_the_slower_of_host_and_device() -> None:
    """Where nothing ran on a device, it is the host, also for calls of less than a microsecond."""
    times: dict[str, tuple[float, float | None]] = {
        "device": (5.0, 20.0),
        "host": (30.0, 20.0),
        "no device": (0.25, None),
    }
    timings = [Timing(host_us=host, host_p95_us=host, device_us=device) for host, device in times.values()]
    rows = [BenchmarkRow(case="opt", candidate="module", timing=timing) for timing in timings]
    assert [row.bottleneck_us for row in rows] == [20.0, 30.0, 0.25]


def test_other_devices_are_refused() -> None:
    """There is no clock for a meta device, and none for a GPU that is not there."""
    with pytest.raises(DeviceError) as caught:
        measure({"a": lambda: None}, device="meta")
    assert str(caught.value) == "measure: got device meta; expected 'cpu' or a CUDA device; e.g. device='cpu'"
    with pytest.raises(InstallationError):
        measure({"a": lambda: None}, device="cuda:99")


# benchmark


def test_module_and_model_are_timed_at_min_opt_and_max() -> None:
    """By default every size of the first profile, both sides, after parity on the very inputs."""
    model, module = mlp()
    report = benchmark(module, model, **QUICK)
    cases = [(row.case, row.candidate) for row in report.rows]
    assert cases == [
        (f"batch {batch}", candidate) for batch in (1, 4, 8) for candidate in ("ONNX Runtime", "PyTorch eager")
    ]
    assert all(row.timing.host_us > 0 and row.timing.device_us is None for row in report.rows)
    assert report.parity is not None
    assert report.parity.passed
    assert [row.case for row in report.parity.rows] == ["batch 1", "batch 4", "batch 8"]
    assert (report.subject, report.precision) == ("CPU", "fp32")


def test_without_a_model_the_module_is_timed_alone() -> None:
    """Nothing is compared then, and the report says so."""
    _, module = mlp()
    report = benchmark(module, sizes=[{"batch": 3}], **QUICK)
    assert [(row.case, row.candidate) for row in report.rows] == [("batch 3", "ONNX Runtime")]
    assert report.parity is None
    assert "answers not compared: no model was given" in str(report)


def test_structured_calls_are_timed_as_a_user_makes_them() -> None:
    """Arguments of any structure, with their constants, are put together from the signature; masks hide nothing."""
    model, module = nested()
    masks: list[torch.Tensor] = []

    def look(_: nn.Module, args: Any, kwargs: Any) -> None:
        masks.append((args[0] if args else kwargs["batch"]).mask)

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    report = benchmark(module, model, **QUICK)
    handle.remove()
    assert report.parity is not None
    assert report.parity.passed
    assert masks


def test_integers_are_zero_and_masks_show_everything() -> None:
    """Zero is in every table; a mask that hides everything would leave nothing to compute."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(2, 4)
            self.seen: list[tuple[torch.Tensor, ...]] = []

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            return self.embed(ids) * mask.unsqueeze(-1) * keep.unsqueeze(-1)

    model = Reader()
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)
    module = deploy(model, (ids, mask, mask.bool()))
    seen: list[tuple[torch.Tensor, ...]] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args))
    assert [row.case for row in benchmark(module, model, **QUICK).rows] == ["sample"] * 2
    assert all(not int(ids.any()) and int(mask.all()) and bool(keep.all()) for ids, mask, keep in seen)
    assert seen


def test_given_inputs_are_timed_instead() -> None:
    """In the form of a sample_input, at their own size."""
    model, module = nested()
    report = benchmark(module, model, inputs=nested_inputs(3), **QUICK)
    assert len(report.rows) == 2
    model, module = mlp()
    assert benchmark(module, model, inputs=sample(5, 6), **QUICK).rows[0].case == "batch 5"


def test_batches_are_sizes_of_the_axis_that_inputs_begin_with() -> None:
    """One number or several; the calls are those of `sizes`."""
    _, module = mlp()
    assert [row.case for row in benchmark(module, batches=(2, 5), **QUICK).rows] == ["batch 2", "batch 5"]
    assert [dict(row.sizes) for row in module.benchmark(batches=3, **QUICK).rows] == [{"batch": 3}]


def test_wrong_answers_are_not_timed() -> None:
    """Parity comes first: a model with other weights ends in a ParityError, before the clock runs."""
    model, module = mlp()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.second.weight.mul_(1.01)
    calls: list[int] = []
    other.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ParityError, match="parity, PyTorch vs ONNX Runtime"):
        benchmark(module, other, sizes=[{"batch": 2}], **QUICK)
    assert len(calls) == 1 + 3  # the answer, and its sensitivity
    wide = Tolerance(rel_l2=1, max_rel=1)
    assert benchmark(module, other, sizes=[{"batch": 2}], tolerance=wide, **QUICK).parity is not None


def test_model_is_timed_in_inference_mode_and_left_as_it_was() -> None:
    """Dropout is off while the clock runs, no gradient is recorded, and training goes on afterwards."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(6, 3), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(self.linear(x))

    model = Dropped()
    module = deploy(model, sample(2, 6))
    model.train()
    model.linear.eval()
    modes: list[tuple[bool, bool]] = []
    model.drop.register_forward_hook(lambda part, _, output: modes.append((part.training, output.requires_grad)))
    before = torch.get_rng_state()
    benchmark(module, model, **QUICK)
    assert set(modes) == {(False, False)}
    assert (model.training, model.linear.training, model.drop.training) == (True, False, True)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"sizes": [{"batch": 1}], "inputs": 1},
            InputError,
            "benchmark: got both sizes and inputs; expected one of them; leave ",
        ),
        (
            {"sizes": []},
            InputError,
            "sizes: got none; expected at least one mapping; leave it out for min, opt and max",
        ),
        (
            {"sizes": [{"rows": 1}]},
            InputError,
            (
                "sizes: got 'rows': 1; expected positive ints for the axes batch; name axes of the module, "
                "or leave sizes out"
            ),
        ),
        (
            {"sizes": [{"batch": "1"}]},
            InputError,
            (
                "sizes: got 'batch': '1'; expected positive ints for the axes batch; name axes of the "
                "module, or leave sizes out"
            ),
        ),
        (
            {"sizes": [{"batch": 0}]},
            InputError,
            (
                "sizes: got 'batch': 0; expected positive ints for the axes batch; name axes of the module, "
                "or leave sizes out"
            ),
        ),
        (
            {"sizes": [{"batch": True}]},
            InputError,
            (
                "sizes: got 'batch': True; expected positive ints for the axes batch; name axes of the "
                "module, or leave sizes out"
            ),
        ),
        ({"sizes": [{"batch": 9}]}, ShapeError, "input 'x': got batch = 9; expected 1..8; redeploy with"),
        ({"inputs": sample(9, 6)}, ShapeError, "input 'x': got batch = 9"),
        ({"rounds": 0}, InputError, "rounds: got 0; expected an int of at least 1; pass such a number"),
        (
            {"batches": (1, 2), "sizes": [{"batch": 1}]},
            InputError,
            "benchmark: got both batches and sizes; expected one of them; leave out batches",
        ),
        (
            {"batches": (1, 0)},
            InputError,
            "batches: got (1, 0); expected a positive int, or several of them; e.g. batches=(1, 2, 4)",
        ),
        ({"batches": (1, 9)}, ShapeError, "input 'x': got batch = 9; expected 1..8; redeploy with"),
        (
            {"streams": (1, 2)},
            InputError,
            "streams: got (1, 2) for a module on the CPU; expected streams of a GPU; leave it out, or deploy with "
            "runtime='tensorrt'",
        ),
    ],
)
def test_what_can_not_be_benchmarked_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """With the reason, in the words of the call."""
    _, module = mlp()
    with pytest.raises(error) as caught:
        benchmark(module, **options)
    assert str(caught.value).startswith(text)


def test_model_on_another_device_is_refused() -> None:
    """The model is never moved behind the user's back."""
    _, module = mlp()
    with pytest.raises(DeviceError) as caught:
        benchmark(module, copy.deepcopy(mlp()[0]).to("meta"))
    assert (
        str(caught.value)
        == "model: got a model on meta; expected one on the module's device, cpu; move it with .to('cpu')"
    )


def test_another_model_is_refused() -> None:
    """A model that returns something else is told so, and not compared by chance."""
    _, module = mlp()
    with pytest.raises(Exception, match="a result with another structure"):
        benchmark(module, seeded(Twice), **QUICK)


class Twice(nn.Module):
    """x -> two tensors."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x]


# BenchmarkReport


def test_report_prints_a_table() -> None:
    """The whole text, to the letter, with and without a device."""
    rows = (
        BenchmarkRow(
            case="batch 1",
            candidate="TensorRT 11",
            timing=Timing(host_us=28.4567, host_p95_us=31.0, device_us=12.1, device_p95_us=1234.5),
        ),
        BenchmarkRow(case="batch 32", candidate="PyTorch eager", timing=Timing(host_us=500.0, host_p95_us=1e4)),
    )
    report = BenchmarkReport(subject="NVIDIA H200", precision="fp16", rows=rows)
    assert str(report).splitlines() == [
        "fp16 on NVIDIA H200, time per call, median and 95th percentile; answers not compared: no model was given",
        "case      candidate      host µs    p95  device µs   p95",
        "batch 1   TensorRT 11      28.46     31       12.1  1234",
        "batch 32  PyTorch eager      500  10000          -     -",
    ]


def test_report_tells_the_parity() -> None:
    """The largest error stands in the first line."""
    model, module = mlp()
    report = benchmark(module, model, sizes=[{"batch": 2}], **QUICK)
    assert report.parity is not None
    assert report.parity.worst is not None
    assert f"; parity passed, rel-l2 at most {report.parity.worst.rel_l2:.2e}\n" in str(report)


def test_json_has_every_figure() -> None:
    """What is printed is there as data, ready for json.dumps."""
    model, module = mlp()
    report = benchmark(module, model, sizes=[{"batch": 2}], **QUICK)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(data) == {"subject", "precision", "rows", "parity", "throughput"}
    assert data["parity"]["passed"]
    row = data["rows"][0]
    assert set(row) == {
        *("case", "candidate", "sizes", "host_us", "host_p95_us", "device_us", "device_p95_us"),
        *("calls", "rounds"),
    }
    assert math.isclose(row["host_us"], report.rows[0].timing.host_us)
    assert benchmark(module, sizes=[{"batch": 2}], **QUICK).to_json()["parity"] is None
