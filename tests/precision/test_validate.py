"""What is refused or kept on the road to a low precision, where it would be silently wrong.

Enters: models with a trap each. Leaves: proof that the trap is seen.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.precision.test_lower import Late, late
from tests.support.models import line_of
from torch2engine.precision.validate import require_no_float64

X = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


def deploy(model: nn.Module, precision: Any = "fp16", x: torch.Tensor = X, **options: Any) -> t2e.ORTModule:
    """On ONNX Runtime."""
    module = t2e.deploy(model.eval(), x, precision=precision, runtime="onnxruntime", **options)
    assert isinstance(module, t2e.ORTModule)
    return module


class Normed(nn.Module):
    """h / (‖h‖ + ε)."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8, bias=False)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return h / (h.norm(dim=-1, keepdim=True) + self.epsilon)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-8, 1e-12])
def test_small_epsilon_is_kept(epsilon: float) -> None:
    """A row of zeros, as padding is, has zeros for an answer and no NaN."""
    assert deploy(Normed(epsilon), "fp32")(torch.zeros(8, 8)).eq(0).all()


def test_fused_convolution_has_its_own_name() -> None:
    """A convolution that has swallowed its BatchNorm is found by its own path."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 4, 3))
    model.add_module("bn", nn.BatchNorm2d(4))
    model.add_module("act", nn.ReLU())
    module = deploy(model, t2e.Precision("fp16", keep_fp32=["conv"]), torch.randn(1, 1, 8, 8))
    assert module.report is not None
    assert module.report.lowering is not None
    assert [kept.module for kept in module.report.lowering.kept] == ["conv"]


class Mixing(nn.Module):
    """Rows influence each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return h - 0.9 * h.mean(0, keepdim=True)


def test_metric_does_not_loosen_the_proof_that_a_batch_may_be_split() -> None:
    """Where a metric judges, splitting still needs the proof."""
    budget = t2e.Budget(metric=lambda outputs, batch: 1.0, floor=0.5)
    with pytest.raises(t2e.InputError, match="its entries may influence each other: ReduceMean"):
        t2e.deploy(
            Mixing(),
            X,
            {"x": {0: "batch"}},
            precision=t2e.Precision("fp16", budget=budget),
            calibration=[X],
            runtime="onnxruntime",
            runtime_config=t2e.RuntimeConfig(out_of_range="split"),
        )


class Large(nn.Module):
    """An output beyond float16."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a(x).abs() + 1) * 1e6


def test_low_ends_that_overflow_are_refused() -> None:
    """Outputs that float16 can't hold are named, where the reference rounded alike would hide them."""
    with pytest.raises(t2e.InputError) as caught:
        deploy(Large(), t2e.Precision("fp16", low_io=True))
    text = str(caught.value)
    assert text.startswith("Precision.low_io: got an output 'output' that reaches ")
    assert text.endswith("answers that fp16 can hold; leave low_io out")


def test_low_ends_and_an_eager_fallback_are_refused() -> None:
    """PyTorch's model would be asked in dtypes that are not its own."""
    with pytest.raises(t2e.InputError) as caught:
        deploy(
            nn.Linear(8, 8),
            t2e.Precision("fp16", low_io=True),
            runtime_config=t2e.RuntimeConfig(out_of_range="eager"),
        )
    assert str(caught.value).startswith("Precision.low_io: got True with out_of_range='eager'")


def test_metric_is_asked_of_low_ends() -> None:
    """Calibration data is cast to what the module takes."""
    seen: list[torch.dtype] = []

    def metric(outputs: torch.Tensor, batch: torch.Tensor) -> float:
        seen.append(outputs.dtype)
        return 1.0

    precision = t2e.Precision("fp16", low_io=True, budget=t2e.Budget(metric=metric, floor=0.5))
    deploy(nn.Linear(8, 8), precision, calibration=[X])
    assert set(seen) == {torch.float16}


def test_metric_that_gives_no_number_is_refused() -> None:
    """By name, with what it gave."""
    budget = t2e.Budget(metric=lambda outputs, batch: None, floor=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(t2e.InputError) as caught:
        deploy(nn.Linear(8, 8), t2e.Precision("fp16", budget=budget), calibration=[X])
    assert str(caught.value) == "Budget.metric: got None; expected a number for each batch; return one"


def test_check_sees_overflow_in_a_typed_graph() -> None:
    """t2e.check judges a lowered artifact as strictly as deploy did."""
    model, sample, data = late()
    module = deploy(model, "fp16", data[0], calibration=data)
    assert t2e.check(model, module._artifact, data[1]).passed
    assert not t2e.check(model, module._artifact, sample).passed
    assert isinstance(model, Late)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_float64_inside_is_refused(dtype: str) -> None:
    """AutoCast would make less of it; the module and the line are named, and the cure works."""

    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.exact = nn.Linear(8, 8), nn.Linear(8, 8).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.exact(self.a(x).double()).float()

    with pytest.raises(t2e.InputError) as caught:
        deploy(Double(), dtype)
    line = line_of(Double, "self.exact(self.a(x)")
    assert caught.value.subject == f"precision '{dtype}'"
    assert f"'exact' (at {line})" in caught.value.got
    assert caught.value.fix == "compute in float32 there, or deploy model.float() where its weights are float64"


class _Positions(nn.Module):
    """Positions from a table in a dtype, which follow the batch."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.arange(x.shape[0], dtype=self.dtype).cos()
        return self.linear(x) * table.float()[:, None]


def test_position_table_in_float64_is_refused_at_its_line() -> None:
    """A table in float32, as the cure says, is lowered."""
    artifact = t2e.export(_Positions(torch.float64), torch.randn(4, 8), {"x": {0: t2e.Axis("n", 2, 4, 8)}})
    with pytest.raises(t2e.InputError) as caught:
        require_no_float64(artifact.onnx_path, t2e.Precision("fp16"))
    assert line_of(_Positions, "torch.arange") in caught.value.got
    cured = t2e.export(_Positions(torch.float32), torch.randn(4, 8), {"x": {0: t2e.Axis("n", 2, 4, 8)}})
    require_no_float64(cured.onnx_path, t2e.Precision("fp16"))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8", "fp8"])
def test_graph_in_which_nothing_is_low_is_refused(dtype: str) -> None:
    """Everything kept, or nothing there to lower: the asked precision would not be in the engine."""
    with pytest.raises(t2e.PrecisionError) as kept:
        deploy(nn.Linear(8, 8), t2e.Precision(dtype, keep_fp32=["*"]))
    assert str(kept.value).startswith(f"precision '{dtype}': got none of the graph's ")
    assert isinstance(kept.value, t2e.BuildError)


def test_budget_that_only_float32_holds_is_refused() -> None:
    """A search that puts everything back to float32 has not found a low graph, though it holds the bound."""
    budget = t2e.Budget(tolerance=t2e.Tolerance(rel_l2=1e-6, max_rel=1e-5))
    with pytest.raises(t2e.PrecisionError) as caught:
        deploy(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), t2e.Precision("fp16", budget=budget))
    assert "more than the budget has" in str(caught.value)


def test_module_without_arithmetic_is_refused() -> None:
    """An embedding's index arithmetic has no float16."""

    class Indices(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 + 1

    with pytest.raises(t2e.PrecisionError) as caught:
        deploy(Indices(), "fp16", torch.arange(4))
    assert "none of the graph's 0 floating-point nodes" in str(caught.value)


def test_lowest_value_of_float32_is_kept_in_bfloat16() -> None:
    """It would round to -inf, and a row that is masked throughout would be NaN."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.a(x).masked_fill(x[:, :1] < 0, torch.finfo(torch.float32).min)
            return scores.softmax(-1)

    module = deploy(Masked(), "bf16")
    assert module.report is not None
    assert module.report.lowering is not None
    assert any("which bfloat16 can't hold" in kept.reason for kept in module.report.lowering.kept)
    assert module(X).isfinite().all()


def test_loops_stay_in_float32() -> None:
    """What runs in a loop is left alone, and the model is deployed."""

    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            from torch._higher_order_ops.while_loop import while_loop

            def more(i: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return i < 3

            def step(i: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return i + 1, y * 0.5

            return self.a(while_loop(more, step, (torch.tensor(0), self.a(x)))[1])

    model = Looping()
    with torch.no_grad():
        torch.testing.assert_close(deploy(model)(X), model(X), rtol=1e-2, atol=1e-2)


def test_users_root_logger_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """AutoCast warns of operators on the root logger, which would print and get a handler."""

    class Inverted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).where(~(x > 0), 0.0)

    root = logging.getLogger()
    before = list(root.handlers)
    deploy(Inverted())
    assert root.handlers == before
    assert capfd.readouterr() == ("", "")


def test_half_model_is_not_lowered_twice() -> None:
    """precision="fp16" of a model.half() is what it is already."""
    module = deploy(nn.Linear(8, 8).half(), "fp16", X.half())
    assert module.precision == "fp16"
    assert module.report is not None
    assert module.report.lowering is None


OPTIONS: dict[str, tuple[Any, str]] = {
    "int4 in tf32": (lambda: t2e.Precision("tf32", weights="int4"), "Precision.weights: got 'int4' with dtype 'tf32'"),
    "int4 with budget": (
        lambda: t2e.Precision("fp16", weights="int4", budget=t2e.Budget()),
        "Precision.budget: got a budget with weights='int4'",
    ),
    "metric with tolerance": (
        lambda: t2e.Budget(metric=lambda outputs, batch: 1.0, floor=0.5, tolerance=t2e.Tolerance()),
        "Budget: got a metric and a tolerance",
    ),
    "metric alone": (lambda: t2e.Budget(metric=lambda outputs, batch: 1.0), "Budget: got metric without floor"),
    "floor alone": (lambda: t2e.Budget(floor=0.5), "Budget: got floor without metric"),
    "rebuilds": (lambda: t2e.Budget(rebuilds=0), "Budget.rebuilds: got 0"),
    "string": (lambda: t2e.Precision("fp16", keep_fp32="head"), "Precision.keep_fp32: got 'head'"),
    "method": (lambda: t2e.Precision("int8", method="mean"), "Precision.method: got 'mean'"),
    "percentile": (lambda: t2e.Precision("int8", percentile=101), "Precision.percentile: got 101"),
    "ends": (lambda: t2e.Precision("int8", low_io=True), "Precision.low_io: got True with dtype 'int8'"),
    "word": (lambda: t2e.Precision("half"), "precision: got 'half'"),
}


@pytest.mark.parametrize(("make", "text"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_mean_nothing_are_refused(make: Any, text: str) -> None:
    """When they are written down, not after minutes of work."""
    with pytest.raises(t2e.InputError) as caught:
        make()
    assert str(caught.value).startswith(text)


def test_operator_that_onnx_runtime_has_not_in_float16_is_answered() -> None:
    """ONNX Runtime computes in float32 and rounds, so that it needs no operator in float16."""

    class Scattered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = torch.zeros(2 * X.shape[0], X.shape[1])  # more than the index has: exported as one ScatterElements
            return rows.scatter_add(1, (x > 0).long(), self.a(x))

    model = Scattered().eval()
    module = deploy(model)
    with torch.no_grad():
        torch.testing.assert_close(module(X), model(X), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("dtype", ["fp16", "int8", "fp8"])
def test_progress_is_told_of_calibration(dtype: str) -> None:
    """Every batch, with the number of all where the data has a length; one more than done where it has none."""
    model, data = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), [X, X, X]
    events: list[tuple[Any, ...]] = []

    def listen(*event: Any) -> None:
        events.append(event[:3])

    deploy(model, dtype, calibration=data, progress=listen)
    assert [event for event in events if event[0] == "calibration"] == [("calibration", step, 3) for step in range(4)]
    events.clear()
    deploy(model, dtype, calibration=(batch for batch in data), progress=listen)
    events = [event for event in events if event[0] == "calibration"]
    assert events == [("calibration", 0, 1), ("calibration", 1, 2), ("calibration", 2, 3), ("calibration", 3, 3)]


def test_length_that_data_can_not_tell_is_no_error() -> None:
    """As a DataLoader's over a stream."""

    class Endless(list[torch.Tensor]):
        def __len__(self) -> int:
            raise NotImplementedError

    deploy(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), calibration=Endless([X]))


@pytest.mark.parametrize("dtype", ["fp16", "int8", "fp8"])
def test_progress_may_cancel_calibration(dtype: str) -> None:
    """By False, or by whatever it raises, which comes out as it is."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    with pytest.raises(t2e.BuildError) as caught:
        deploy(model, dtype, calibration=[X, X], progress=lambda phase, step, *_: phase != "calibration" or step < 1)
    assert str(caught.value) == (
        "calibration: got False from progress in 'calibration'; expected another value, since False "
        "cancels; return None to go on"
    )

    def fail(*event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(model, dtype, calibration=[X, X], progress=fail)
