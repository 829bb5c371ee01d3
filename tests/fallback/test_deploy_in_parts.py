"""deploy(fallback=True): one program in engines and PyTorch, by ONNX Runtime on the CPU."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.fallback_models import FourObstacles, Pyramid, ThreeObstacles, line_with
from torch2engine.deployed.deploy_report import DeployReport
from torch2engine.fallback import deploy_in_parts as room
from torch2engine.fallback.deploy_in_parts import with_fallback
from torch2engine.fallback.deployable_graph import DeployableGraph

AXES = {"x": {0: t2e.Axis("batch", 5, 7, 9)}}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return ThreeObstacles().eval()


@pytest.fixture(scope="module")
def deployed(model: nn.Module) -> t2e.PartsModule:
    """The model with three obstacles, in parts."""
    config = t2e.BuildConfig(refittable=True)
    module = t2e.deploy(model, torch.rand(7, 3, 8, 8), AXES, runtime="onnxruntime", config=config, fallback=True)
    assert isinstance(module, t2e.PartsModule)
    return module


def close(actual: Any, expected: Any) -> None:
    """The same structure and, within rounding, values."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [5, 6, 9])
def test_model_in_parts_answers_like_the_model(deployed: t2e.PartsModule, model: nn.Module, batch: int) -> None:
    """Engines and PyTorch together are exact, at sizes that depend on values too."""
    x = torch.rand(batch, 3, 8, 8)
    with torch.no_grad():
        close(deployed(x), model(x))


def test_fast_path_answers_what_the_checked_one_does(
    deployed: t2e.PartsModule, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shape that was answered before needs no check; all else goes through every check, as at the first call."""
    x = torch.rand(6, 3, 8, 8)
    deployed(x)
    checked: list[Any] = []
    whole = type(deployed)._check_call
    monkeypatch.setattr(type(deployed), "_check_call", lambda self, leaves: checked.append(whole(self, leaves)))
    again = torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        close(deployed(again), model(again))
        assert not checked
        parts = deployed(again.clone().requires_grad_())
        assert not any(part.requires_grad for part in parts)
        assert not checked
        strided = torch.rand(6, 8, 8, 3).permute(0, 3, 1, 2)
        close(deployed(strided), model(strided))
        with torch.autocast("cpu", torch.bfloat16):
            cast = deployed(again)
        close(cast, model(again))
    assert len(checked) == 2
    with pytest.raises(t2e.InputError, match="requires grad"):
        deployed(again.clone().requires_grad_())
    with pytest.raises(t2e.DtypeError):
        deployed(again.double())
    with pytest.raises(t2e.ShapeError):
        deployed(torch.rand(10, 3, 8, 8))
    with pytest.raises(t2e.InputError):
        deployed(again, again)


def test_report_names_each_operator_in_pytorch_by_file_and_line(deployed: t2e.PartsModule) -> None:
    """The three obstacles are listed, and nothing else is; all parts between them run in engines."""
    places = {obstacle.source: obstacle.operator for obstacle in deployed.obstacles}
    assert places == {
        line_with("found = torch.nonzero("): "aten.nonzero",
        line_with("basis = torch.linalg.qr("): "aten.linalg_qr",
        line_with("scores[scores[:, 0] > 1.5]"): "aten.index.Tensor",
    }
    assert deployed.report is not None
    assert deployed.report.passed
    assert (deployed.report.precision, deployed.precision) == ("fp32", "fp32")
    assert [note for note in deployed.report.notes if not note.startswith("in PyTorch: ")] == []
    explanation = deployed.explain(torch.rand(7, 3, 8, 8))
    assert [part.runs_in for part in explanation.parts] == ["ONNX Runtime"] * 3


class Eigenvalues(nn.Module):
    """Linear layers before and after an operator that no engine takes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [B, 8] → [B, 2]."""
        rows = self.body(x)
        values = torch.linalg.eigvalsh(rows.mT @ rows)
        return self.head(rows * values)


def test_report_tells_what_runs_where_in_order(deployed: t2e.PartsModule) -> None:
    """Engines with their torch modules, and what PyTorch runs between them, with the reason; saved, too."""
    parts = deployed.report.parts
    assert {part.runs_in for part in parts} == {"ONNX Runtime", "PyTorch"}
    assert all(part.operators and part.source for part in parts)
    assert all(bool(part.reason) == (part.runs_in == "PyTorch") for part in parts)
    assert any(part.modules for part in parts if part.runs_in == "ONNX Runtime")
    first, *_ = deployed.obstacles
    assert any(f"{first.operator}: {first.reason}" in part.reason for part in parts)
    again = DeployReport.from_json(json.loads(json.dumps(deployed.report.to_json())), None, None)
    assert again.parts == parts


def test_axis_that_begins_at_one_is_answered_at_one() -> None:
    """torch traces such an axis from 2 on; the parts hold for 1 as well, and engines answer it."""
    torch.manual_seed(0)
    model = Eigenvalues().eval()
    axes = {"x": {0: t2e.Axis("batch", 1, 2, 4)}}
    module = t2e.deploy(model, torch.rand(2, 8), axes, runtime="onnxruntime", fallback=True)
    one = torch.rand(1, 8)
    with torch.no_grad():
        close(module(one), model(one))
    assert [part.runs_in for part in module.explain(one).parts] == ["ONNX Runtime"] * 2


def test_operators_of_every_kind_are_named_between_engines_for_every_size() -> None:
    """A write, two results, complex numbers and a search stay in PyTorch; halved sizes are axes of the engines."""
    torch.manual_seed(0)
    model = Pyramid().eval()
    height, width = t2e.Axis("height", 16, 32, 48), t2e.Axis("width", 16, 24, 48)
    labels = torch.tensor([3, 1, 3, 2])
    module = t2e.deploy(
        model,
        (torch.rand(4, 3, 32, 24), labels),
        {"images": {2: height, 3: width}},
        runtime="onnxruntime",
        fallback=True,
    )
    assert isinstance(module, t2e.PartsModule)
    assert {obstacle.source: obstacle.operator for obstacle in module.obstacles} == {
        line_with("raise_by(x, 0.5)"): "torch2engine_test.raise_by",
        line_with("positive, negative = split(x)"): "torch2engine_test.split",
        line_with("spectrum = torch.fft.rfft("): "aten.fft_rfft",
        line_with("return x * torch.view_as_real("): "aten.view_as_real",
        line_with("found = labels.unique("): "aten._unique2",
    }
    for sides in ((16, 48), (47, 17)):
        images = torch.rand(4, 3, *sides)
        with torch.no_grad():
            close(module(images, labels), model(images, labels))
        assert [part.runs_in for part in module.explain((images, labels)).parts] == ["ONNX Runtime"] * 4


class AmplifiedBasis(nn.Module):
    """Makes any rounding three thousand times larger, after an operator that no engine takes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Matrices [B, 64, 8] → [B, 8, 64]."""
        basis = torch.linalg.qr(x).Q
        return torch.sin(self.norm(basis.transpose(1, 2)) * 3e3)


class Kinks(nn.Module):
    """Makes any rounding three thousand times larger, before a ReLU and an operator that no engine takes.

    Args:
        returns_features: whether the values behind the ReLU are a result.
    """

    def __init__(self, returns_features: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2048)
        self.returns_features = returns_features

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows [B, 2048] → means [B], perhaps with features [B, 2048]."""
        features = torch.sin(self.norm(x) * 3e3).relu()
        means = torch.special.bessel_j0(features).mean(1)
        return (means, features) if self.returns_features else (means,)


@pytest.mark.parametrize(("returns_features", "runs_in"), [(False, "ONNX Runtime"), (True, "PyTorch")])
def test_values_that_are_zero_in_one_alone_are_judged_by_what_follows_from_them(
    returns_features: bool, runs_in: str
) -> None:
    """Behind a ReLU single values inside a model may be off further than its results, which keep their bounds."""
    torch.manual_seed(0)
    model, x = Kinks(returns_features).eval(), torch.rand(64, 2048)
    module = t2e.deploy(model, x, runtime="onnxruntime", fallback=True, cache=False)
    assert isinstance(module, t2e.PartsModule)
    first = module.explain(x).parts[0]
    assert (first.runs_in, first.operators) == (runs_in, 4)
    assert ("relative to itself and its surroundings off by" in first.reason) == returns_features
    assert module.report is not None
    (parity,) = module.report.parity
    assert parity.passed
    assert parity.tolerance.max_rel == t2e.Tolerance.default("fp32").max_rel * 0.1  # what ONNX Runtime may be off


def test_model_in_parts_is_judged_by_its_own_sensitivity() -> None:
    """A model that amplifies rounding is not refused for it, and the report says how much it does."""
    torch.manual_seed(0)
    model = AmplifiedBasis().eval()
    module = t2e.deploy(model, torch.rand(2, 64, 8), runtime="onnxruntime", fallback=True)
    assert isinstance(module, t2e.PartsModule)
    rows = module.report.parity[-1].rows
    assert rows and all(row.passed for row in rows)
    assert max(row.rel_l2 for row in rows) > 2.5e-5  # all that ONNX Runtime may be off without the sensitivity
    assert all(row.sensitivity > 1e-5 for row in rows)


def test_results_of_a_model_in_parts_stay_and_are_fresh(deployed: t2e.PartsModule) -> None:
    """No later call changes a result."""
    x = torch.rand(7, 3, 8, 8)
    first = deployed(x)
    kept = [tensor.clone() for tensor in first]
    deployed(torch.rand(7, 3, 8, 8))
    close(list(first), kept)


def test_call_that_no_part_answers_is_refused_before_it_runs(deployed: t2e.PartsModule) -> None:
    """The contract of a call is that of a single engine."""
    with pytest.raises(t2e.ShapeError, match=r"got batch = 10; expected 5\.\.9"):
        deployed(torch.rand(10, 3, 8, 8))
    with pytest.raises(t2e.DtypeError, match="got dtype float64"):
        deployed(torch.rand(7, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(t2e.InputError, match="a tensor that requires grad while grad is enabled"):
        deployed(torch.rand(7, 3, 8, 8, requires_grad=True))
    with pytest.raises(t2e.InputError, match="PartsModule: got a cast to float16"):
        deployed.half()
    with pytest.raises(t2e.InputError, match=r"inputs: got 2; expected 1: x"):
        deployed.infer([torch.rand(7, 3, 8, 8)] * 2)
    with pytest.raises(t2e.DeviceError, match="PartsModule: got a move to meta"):
        deployed.to("meta")


def test_call_under_autocast_answers_in_the_models_own_dtypes(deployed: t2e.PartsModule, model: nn.Module) -> None:
    """What stays in PyTorch is not cast by the caller's autocast."""
    x = torch.rand(7, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            close(deployed(x), expected)


def test_saved_model_in_parts_answers_like_the_model(
    deployed: t2e.PartsModule, model: nn.Module, tmp_path: Path
) -> None:
    """One folder holds the engines and what stays in PyTorch; so do a copy, a pickle and a state_dict."""
    loaded = t2e.load(deployed.save(tmp_path / "model.t2e"))
    assert isinstance(loaded, t2e.PartsModule)
    other = t2e.load(tmp_path / "model.t2e", runtime="onnxruntime")
    other.load_state_dict(deployed.state_dict())
    x = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        for module in (loaded, other, copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
            close(module(x), model(x))
    assert loaded.obstacles == deployed.obstacles
    explanation = loaded.explain(torch.rand(7, 3, 8, 8))
    assert [part.runs_in for part in explanation.parts] == ["ONNX Runtime"] * 3


def test_refit_reaches_the_engines_and_what_stays_in_pytorch(deployed: t2e.PartsModule, tmp_path: Path) -> None:
    """New weights reach every part, of a loaded module too, and are saved with it."""
    loaded = t2e.load(deployed.save(tmp_path / "model.t2e"))
    assert isinstance(loaded, t2e.PartsModule)
    torch.manual_seed(1)
    other = ThreeObstacles().eval()
    assert loaded.stale(other)
    refit = loaded.refit(other, verify=False)
    assert {"conv.weight", "hidden.bias", "head.weight"} <= set(refit.changed)
    assert not loaded.stale(other)
    x = torch.rand(7, 3, 8, 8)
    with torch.no_grad():
        close(loaded(x), other(x))
        again = t2e.load(loaded.save(tmp_path / "model.t2e"))
        close(again(x), other(x))
    assert not again.stale(other)
    other.hidden = nn.Linear(4, 6)
    with pytest.raises(
        t2e.RefitError, match=r"'hidden\.bias': got torch\.float32 \[6\]; expected torch\.float32 \[5\]"
    ):
        loaded.refit(other)


class LargeRows(nn.Module):
    """Rows of a layer, chosen by their values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)[torch.nonzero(x[:, 0] > 0.5)[:, 0]]


def test_half_model_in_parts_is_of_its_own_precision() -> None:
    """Nobody asked for another one, and float16's tolerance is the one that counts."""
    model = LargeRows().eval().half()
    x = torch.linspace(0, 1, 12).reshape(3, 4).half()
    module = t2e.deploy(model, x, runtime="onnxruntime", fallback=True)
    assert isinstance(module, t2e.PartsModule)
    assert module.report is not None
    assert (module.precision, module.report.precision) == ("fp16", "fp16")
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=1e-2, atol=1e-2)


def test_branch_on_a_value_is_refused_with_the_way_that_takes_it() -> None:
    """What can't be exported at all runs by torch.compile, which the error names."""
    with pytest.raises(t2e.ExportError) as caught:
        t2e.deploy(FourObstacles().eval(), torch.rand(7, 3, 8, 8), runtime="onnxruntime", fallback=True)
    assert caught.value.source == line_with("if rows.sum() > 0:")
    assert "torch.compile(model, backend='torch2engine')" in caught.value.fix


def test_option_without_a_meaning_for_parts_is_refused(model: nn.Module) -> None:
    """Nothing that was asked for is dropped in silence."""
    split = t2e.RuntimeConfig(out_of_range="split")
    with pytest.raises(t2e.InputError, match=r"runtime_config\.out_of_range: got 'split' for a model that no single"):
        t2e.deploy(model, torch.rand(7, 3, 8, 8), runtime="onnxruntime", runtime_config=split, fallback=True)


def test_model_that_is_one_engine_stays_one() -> None:
    """Fallback changes nothing where it is not needed."""
    module = t2e.deploy(nn.Linear(4, 2), torch.rand(3, 4), runtime="onnxruntime", fallback=True)
    assert isinstance(module, t2e.ORTModule)


def test_every_argument_of_deploy_is_known_where_parts_are_deployed() -> None:
    """An option that deploy() gets, and the fallback lacks, would fail at once instead of being left out."""
    known = {field.name for field in fields(vars(room)["_Arguments"])}
    assert known == set(inspect.signature(t2e.deploy).parameters)


class Chooser(nn.Module):
    """The best rows of a network, and those of them that are good enough."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.score = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [B, 8] → [K, 16]."""
        rows = self.body(x)
        scores, order = self.score(rows)[:, 0].sigmoid().topk(4)
        best = rows[order] * scores[:, None] + 1
        return best[scores > scores.mean()]


def test_choices_of_a_wrong_engine_stay_in_pytorch_and_the_network_does_not(tmp_path: Path) -> None:
    """Where an engine is off, its comparisons and sorts are left out, by their lines; a saved cut is the same."""
    whole: Any = inspect.unwrap(t2e.deploy)

    @functools.wraps(whole)
    def deploy_with_wrong_choices(model: nn.Module, *args: Any, **options: Any) -> Any:
        if isinstance(model, DeployableGraph) and model.choices("any"):
            raise t2e.ParityError("parity", report="", got="another choice | and more", allowed="PyTorch's", fix="none")
        return whole(model, *args, **options)

    torch.manual_seed(0)
    model, x = Chooser().eval(), torch.randn(9, 8)
    module: Any = with_fallback(deploy_with_wrong_choices)(model, x, runtime="onnxruntime", fallback=True)
    reasons = {obstacle.operator: obstacle.reason for obstacle in module.obstacles}
    assert list(reasons) == ["aten.index.Tensor", "aten.topk", "aten.gt.Tensor"]
    assert reasons["aten.topk"] == reasons["aten.gt.Tensor"] == "with it the engine is off: another choice"
    assert [part.runs_in for part in module.explain(x).parts] == ["ONNX Runtime", "ONNX Runtime"]
    module.save(tmp_path / "chooser")
    for one in (module, t2e.load(tmp_path / "chooser")):
        for rows in (x, torch.randn(9, 8)):
            with torch.no_grad():
                close(one(rows), model(rows))
