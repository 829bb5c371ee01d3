"""Low precisions as deploy() makes them: trained models, planted overflow, budgets.

Enters: the models of `precision_models`. Leaves: proof that they stay right in each precision, by the strict judge on
data that they have not seen, that what can't be right is found and named, and that budgets hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.build_here import build_here
from tests.support.lowered_models import deployed
from tests.support.precision_models import NAMES, OVERFLOW, Trained, call, trained

# What a trained model may lose, relative L2 of the answers on data that it has not seen.
BOUNDS = {"fp16": 1e-3, "bf16": 1e-2}
LOW = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


@pytest.fixture(scope="module", params=[name for name in NAMES if name != "vit"])
def subject(request: pytest.FixtureRequest) -> Trained:
    """Each trained model; "vit_overflow" has all of "vit"."""
    return trained(request.param)


def error(module: t2e.ORTModule, subject: Trained) -> float:
    """Relative L2 of the answers on four batches that were not used before."""
    with torch.no_grad():
        wanted = torch.cat([call(subject.model, batch) for batch in subject.data[4:8]])
        found = torch.cat([call(module, batch) for batch in subject.data[4:8]])
    return float((found - wanted).norm() / wanted.norm())


def lowering(module: t2e.ORTModule) -> Any:
    """The report's part on precision."""
    assert module.report is not None
    assert module.report.lowering is not None
    return module.report.lowering


@pytest.mark.parametrize("dtype", sorted(BOUNDS))
def test_trained_models_stay_right(subject: Trained, dtype: str) -> None:
    """Strictly rounded, each answers within the bound, in the model's own dtypes, and TensorRT-RTX builds it."""
    module = deployed(subject, dtype)
    assert error(module, subject) <= BOUNDS[dtype]
    assert module.precision == dtype
    with torch.no_grad():
        assert call(module, subject.data[5]).dtype == torch.float32
    told = lowering(module)
    assert told.low >= 0.75 * told.nodes
    engine = build_here(module._artifact)
    assert engine.precision == dtype
    weights = [tensor for tensor in onnx.load(module._artifact.onnx_path).graph.initializer if len(tensor.dims) > 1]
    kept = {onnx.TensorProto.FLOAT} if told.kept else set[int]()
    assert {tensor.data_type for tensor in weights} - {onnx.TensorProto.INT64} - kept == {LOW[dtype]}


@pytest.mark.parametrize(("dtype", "bound"), [("int8", 5e-2), ("fp8", 6e-2)])
def test_trained_models_stay_right_when_quantised(subject: Trained, dtype: str, bound: float) -> None:
    """Within the bound on unseen data; BERT in fp8 may keep one module in float32, which the report then names."""
    module = deployed(subject, t2e.Precision(dtype, budget=t2e.Budget()))
    assert error(module, subject) <= bound
    assert module.precision == dtype
    told = lowering(module)
    assert told.low > 0
    types = {node.op_type for node in onnx.load(module._artifact.onnx_path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= types
    # Which module the search keeps depends on how the CPU rounds, so only the promise is asserted.
    most_kept = 1 if (subject.name, dtype) == ("bert", "fp8") else 0
    modules = {name for name, part in subject.model.named_modules() if not list(part.children())}
    assert len(told.kept) <= most_kept
    assert all(kept.module in modules and kept.reason for kept in told.kept)
    assert (len(told.attempts) > 1) == bool(told.kept)
    if told.kept:  # the search kept it because the judge refuses the graph without it
        with pytest.raises(t2e.ParityError):
            deployed(subject, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_int4_weights_stay_right(dtype: str) -> None:
    """Weights alone in four bits, beside float32 or float16, judged as roughly as int8."""
    subject = trained("bert")
    module = deployed(subject, t2e.Precision(dtype, weights="int4"))
    assert error(module, subject) <= 5e-2
    kinds = {tensor.data_type for tensor in onnx.load(module._artifact.onnx_path).graph.initializer}
    assert onnx.TensorProto.INT4 in kinds
    assert build_here(module._artifact).read_plan()


def test_planted_overflow_is_found_and_named() -> None:
    """The module whose values exceed float16 stays in float32, at the price of a tenth of the nodes at most."""
    told = lowering(deployed(trained("vit_overflow"), "fp16"))
    modules = {kept.module for kept in told.kept}
    assert modules == {f"{OVERFLOW}.wide", f"{OVERFLOW}.narrow"}
    assert all("which float16 can't hold with room to spare" in kept.reason for kept in told.kept)
    assert told.low >= 0.9 * told.nodes
    plain = deployed(trained("vit"), "fp16")
    assert lowering(plain).kept == ()
    assert error(plain, trained("vit")) <= BOUNDS["fp16"]


class Late(nn.Module):
    """Overflows float16 in `square` for inputs above 100 alone, which calibration may not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.square = Square()
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.square(self.first(x)).clamp(max=1000.0))


class Square(nn.Module):
    """sqrt(x⁴): as large as x² in between."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x * x) * (x * x)).sqrt()


def late() -> tuple[Late, torch.Tensor, list[torch.Tensor]]:
    """The model, a sample that overflows, and calibration data that doesn't."""
    torch.manual_seed(0)
    return Late().eval(), torch.randn(4, 8) * 100, [torch.randn(4, 8) for _ in range(3)]


def test_overflow_that_calibration_hides_is_judged() -> None:
    """Without a budget the judge refuses it, though ONNX Runtime's own answers would be fine numbers."""
    model, sample, data = late()
    with pytest.raises(t2e.ParityError) as caught:
        t2e.deploy(model, sample, precision="fp16", calibration=data, runtime="onnxruntime")
    assert "rounding after every operator" in str(caught.value)


def test_budget_finds_the_overflow(caplog: pytest.LogCaptureFixture) -> None:
    """The search puts the module that overflows back to float32 first, logs what it tries, and passes."""
    model, sample, data = late()
    precision = t2e.Precision("fp16", budget=t2e.Budget())
    with caplog.at_level(logging.INFO, logger="torch2engine.precision"):
        module = t2e.deploy(model, sample, precision=precision, calibration=data, runtime="onnxruntime")
    assert isinstance(module, t2e.ORTModule)
    told = lowering(module)
    assert [kept.module for kept in told.kept] == ["square"]
    assert next(iter(told.errors)) == "square"
    assert told.attempts[0].startswith("graph 1: rel-l2 ")
    assert told.attempts[-1].endswith("which holds the budget")
    assert [record.getMessage() for record in caplog.records] == list(told.attempts)
    assert "'square'" in str(module.report)
    with torch.no_grad():
        wanted = model(sample)
        assert float((module(sample) - wanted).norm() / wanted.norm()) < 1e-2


def test_tight_budget_costs_modules() -> None:
    """A bound below what float16 gives puts the worst modules back until it holds."""
    subject = trained("vit")
    bound = t2e.Tolerance(rel_l2=4e-4, max_rel=0.1, abs=1e-4)
    module = deployed(subject, t2e.Precision("fp16", budget=t2e.Budget(tolerance=bound)))
    told = lowering(module)
    assert 0 < told.low < told.nodes
    assert len(told.kept) >= 2
    assert all("costs " in kept.reason for kept in told.kept)
    assert error(module, subject) < error(deployed(subject, "fp16"), subject)


def test_budget_that_nothing_holds_is_refused() -> None:
    """After the allowed rebuilds the error has the last table and everything that was tried."""
    bound = t2e.Tolerance(rel_l2=1e-6)
    precision = t2e.Precision("bf16", budget=t2e.Budget(tolerance=bound, rebuilds=2))
    with pytest.raises(t2e.ParityError) as caught:
        deployed(trained("lstm"), precision)
    assert "note: graph 1: rel-l2 " in str(caught.value)
    assert "note: graph 2: rel-l2 " in str(caught.value)
    assert "graph 3" not in str(caught.value)


def test_metric_judges_in_place_of_parity() -> None:
    """A user's metric over the calibration data decides, called with outputs in the model's form and the batch."""
    subject = trained("resnet")
    labels = {id(batch): label for batch, label in zip(subject.data, subject.labels, strict=True)}
    seen: list[tuple[int, ...]] = []

    def top1(outputs: torch.Tensor, batch: Any) -> float:
        seen.append(tuple(outputs.shape))
        return float((outputs.argmax(-1) == labels[id(batch)]).float().mean())

    budget = t2e.Budget(metric=top1, floor=subject.accuracy - 0.05)
    module = deployed(subject, t2e.Precision("bf16", budget=budget), calibration=subject.data)
    assert seen == [(32, 10)] * len(subject.data)
    assert lowering(module).attempts[0].startswith("graph 1: metric 0.9")
    hopeless = t2e.Budget(metric=lambda outputs, batch: 0.5, floor=0.9, rebuilds=2)
    with pytest.raises(t2e.ParityError) as caught:
        deployed(subject, t2e.Precision("bf16", budget=hopeless))
    assert "graph 2: metric 0.5, floor 0.9" in str(caught.value)


def test_kept_modules_stay_in_float32() -> None:
    """Paths with * name modules with all inside; a path that no module has is refused, with those that are there."""
    subject = trained("vit")
    told = lowering(deployed(subject, t2e.Precision("fp16", keep_fp32=["head", "blocks.1"])))
    assert {kept.module for kept in told.kept} >= {"head", "blocks.1.mlp.fc1", "blocks.1.norm1"}
    assert {kept.module.split(".")[0] for kept in told.kept} == {"head", "blocks"}
    assert not [kept for kept in told.kept if kept.module.startswith(("blocks.0", "blocks.2"))]
    with pytest.raises(t2e.InputError) as caught:
        deployed(subject, t2e.Precision("fp16", keep_fp32=["heads"]))
    assert str(caught.value).startswith(
        "Precision.keep_fp32: got 'heads', which names no module; expected modules of the graph: "
    )
    assert "'blocks.0.attention.qkv'" in str(caught.value)


def test_low_ends_are_the_modules_own() -> None:
    """low_io changes what the deployed module takes and gives."""
    subject = trained("resnet")
    module = deployed(subject, t2e.Precision("fp16", low_io=True))
    assert [spec.dtype for spec in (*module.signature.inputs, *module.signature.outputs)] == ["float16", "float16"]
    with torch.no_grad():
        assert module(subject.data[5][0].half()).dtype == torch.float16


def test_without_calibration_the_sample_is_the_data() -> None:
    """deploy's own cases at min, opt and max show how large values become."""
    told = lowering(deployed(trained("vit_overflow"), "fp16", calibration=None))
    assert {kept.module for kept in told.kept} == {f"{OVERFLOW}.wide", f"{OVERFLOW}.narrow"}


def test_model_in_half_is_not_lowered_again() -> None:
    """A model that computes in float16 itself is deployed as it is, or asked to be made float32."""
    model = nn.Linear(4, 4).half()
    with pytest.raises(t2e.InputError) as caught:
        t2e.deploy(model, torch.randn(2, 4).half(), precision="bf16", runtime="onnxruntime")
    assert str(caught.value) == (
        "precision: got 'bf16' for a model that computes in fp16 itself; expected a float32 model; "
        "deploy model.float(), or leave precision out"
    )


def _iterator() -> Iterator[torch.Tensor]:
    yield torch.randn(2, 4)


METRIC = t2e.Budget(metric=lambda outputs, batch: 1.0, floor=0.5)
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "fp32": ("fp32", [torch.randn(2, 4)], "calibration: got a list beside precision 'fp32'"),
    "tensor": ("fp16", torch.randn(2, 4), "calibration: got a Tensor; expected an iterable of inputs"),
    "number": ("fp16", 3, "calibration: got an int; expected an iterable of inputs"),
    "empty": ("fp16", [], "calibration: got no batch"),
    "metric": (
        t2e.Precision("fp16", budget=METRIC),
        None,
        ("calibration: got None; expected the batches that Budget.metric"),
    ),
    "once": (t2e.Precision("fp16", budget=METRIC), _iterator(), "calibration: got an iterator, which can be read once"),
    "shape": ("fp16", [torch.randn(2, 5)], "calibration item 0: got dimension 1 = 5 for input 'input'; "),
    "form": ("fp16", [(torch.randn(2, 4), 3)], "calibration item 0: got 2 positional arguments for call; "),
}


@pytest.mark.parametrize(("precision", "calibration", "text"), REFUSED.values(), ids=REFUSED)
def test_calibration_that_does_not_fit_is_refused(precision: Any, calibration: Any, text: str) -> None:
    """A typed error that says what came and what is needed."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.deploy(
            nn.Linear(4, 4), torch.randn(2, 4), precision=precision, calibration=calibration, runtime="onnxruntime"
        )
    assert str(caught.value).startswith(text)
