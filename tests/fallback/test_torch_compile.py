"""torch.compile with this package as its backend, and the explanation, by ONNX Runtime on the CPU."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.fallback_models import FourObstacles, line_with
from torch2engine.fallback import tracking_engines
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.graph_compiler import GraphCompiler
from torch2engine.fallback.run_record import RunRecord
from torch2engine.fallback.torch_compile import make_compiler


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Every test begins without graphs of another one, which share code objects of torch.nn."""
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


class Backend:
    """The backend with a record to look at."""

    def __init__(self, **options: Any) -> None:
        self.record = RunRecord()
        self.deployed = self.record.engines
        self._compiler = make_compiler(CompileOptions.from_mapping(options), self.record)

    def compile(self, model: Any) -> Any:
        """Compile a model by this backend."""
        return torch.compile(model, backend=self._compiler.compile)

    @property
    def runs_in(self) -> list[str]:
        """Where each part runs."""
        return [part.runs_in for part in self.record.parts]


@pytest.fixture
def backend() -> Callable[..., Backend]:
    """Makes backends with options."""
    return Backend


def close(actual: Any, expected: Any) -> None:
    """The same structure and, within rounding, values."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def small_model() -> nn.Module:
    """A model of three operators."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def test_model_with_four_obstacles_is_exact_and_explained_by_file_and_line(backend: Callable[..., Backend]) -> None:
    """Engines answer all but the four places; these are listed, each once, and nothing else is."""
    torch.manual_seed(0)
    model = FourObstacles().eval()
    four = backend()
    compiled = four.compile(model)
    x = torch.rand(7, 3, 8, 8)
    close(compiled(x), model(x))
    assert set(four.runs_in) == {"ONNX Runtime"}
    obstacles = sorted((one.source, one.operator) for one in four.record.obstacles.values())
    assert obstacles == [
        (line_with("places = torch.nonzero("), "aten.nonzero"),
        (line_with("if rows.sum() > 0:"), "branch"),
        (line_with("turn = torch.linalg.qr("), "linalg_qr"),
        (line_with("rows = rows[rows[:, 0] > 1.5]"), "aten.nonzero"),
    ]


def test_explanation_names_the_parts_and_their_share_of_the_time() -> None:
    """A user reads what runs where, for a compiled model and a compiled function as well."""
    explanation = t2e.explain(torch.compile(small_model(), backend="eager"), torch.rand(3, 4))
    (part,) = explanation.parts
    assert (part.runs_in, part.operators, part.reason) == ("ONNX Runtime", 3, "")
    assert 0 < explanation.engine_share <= 1
    assert explanation.obstacles == ()
    assert str(explanation).startswith("1 of 1 parts in engines, ")
    function = torch.compile(lambda x: (x @ x.T).relu(), backend="eager")
    assert [part.runs_in for part in t2e.explain(function, torch.rand(3, 4)).parts] == ["ONNX Runtime"]


def test_function_that_torch_compile_leaves_to_python_is_explained_by_its_line() -> None:
    """A branch inside a loop leaves no graph at all; the explanation names the branch."""

    def repeat(x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            if x.sum() > 0:
                x = x.exp() * 2 + 1
        return x

    explanation = t2e.explain(repeat, torch.ones(3))
    assert (list(explanation.parts), explanation.engine_share) == ([], 0.0)
    (obstacle,) = explanation.obstacles
    assert (obstacle.operator, obstacle.reason) == ("branch", "a Python branch on the value of a tensor")
    assert obstacle.source == f"{__file__}:{repeat.__code__.co_firstlineno + 2}"
    assert t2e.explain(lambda x: x, torch.ones(3)).obstacles == ()


def test_new_weights_are_seen_however_they_were_written(backend: Callable[..., Backend]) -> None:
    """No way of writing weights leaves a stale answer: in place, through .data, by assignment, by load_state_dict."""
    model = small_model()
    x = torch.rand(3, 4)
    refitted = backend(config=t2e.BuildConfig(refittable=True))
    compiled = refitted.compile(model)
    close(compiled(x), model(x))
    model[0].weight.mul_(2)
    close(compiled(x), model(x))
    model[2].bias.data.add_(1)
    close(compiled(x), model(x))
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})
    close(compiled(x), model(x))
    assert len(refitted.deployed) == 1
    model[0].weight = nn.Parameter(torch.rand(8, 4))
    close(compiled(x), model(x))


def test_engine_that_cannot_be_refitted_is_built_anew_with_one_warning(backend: Callable[..., Backend]) -> None:
    """Without refittable a change of weights costs a build; the warning says what would spare it."""
    model = small_model()
    x = torch.rand(3, 4)
    compiled = backend().compile(model)
    compiled(x)
    model[0].weight.mul_(2)
    with pytest.warns(UserWarning, match=r"refittable=True"):
        close(compiled(x), model(x))
    model[0].weight.mul_(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(compiled(x), model(x))


@pytest.mark.usefixtures("quick_collection")
def test_layers_that_share_a_graph_keep_their_own_weights(
    backend: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer of one class has an engine of its own, made once; a layer too many is PyTorch's, until one goes."""
    monkeypatch.setattr(tracking_engines, "_MOST_SETS", 2)
    layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval() for _ in range(3)]
    shared = backend()
    block = shared.compile(lambda layer, x: layer(x))
    x = torch.rand(3, 4)
    for _ in range(2):
        for layer in layers[:2]:
            close(block(layer, x), layer(x))
    for deployed in (2, 3):
        close(block(layers[-1], x), layers[-1](x))
        assert len(shared.deployed) == deployed
        del layers[0]
        gc.collect()


def test_few_engines_answer_many_batch_sizes(backend: Callable[..., Backend]) -> None:
    """A size that varies becomes a profile up to a power of two: twenty sizes need four engines, not twenty."""
    model = small_model()
    sizes = backend()
    compiled = sizes.compile(model)
    for batch in (3, *range(5, 24)):
        x = torch.rand(batch, 4)
        close(compiled(x), model(x))
    assert [str(signature.inputs[0].shape[0]).isdigit() for signature in sizes.deployed] == [
        True,
        False,
        False,
        False,
    ]


def test_marked_axis_is_one_engine_for_its_range(backend: Callable[..., Backend]) -> None:
    """mark_dynamic's largest size bounds the profile."""
    model = small_model()
    marked = backend()
    compiled = marked.compile(model)
    x = torch.rand(5, 4)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=6)
    close(compiled(x), model(x))
    close(compiled(torch.ones(2, 4)), model(torch.ones(2, 4)))
    (signature,) = marked.deployed
    assert [axis.range for axis in signature.axes] == [(2, 5, 6)]


def test_writes_and_aliases_are_those_of_pytorch(backend: Callable[..., Backend]) -> None:
    """A graph that writes into an input, updates statistics and returns views does in engines what it does in eager."""

    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4, momentum=0.5)
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            hidden = self.linear(self.norm(x)).relu().sigmoid()
            x.add_(1)
            return hidden, hidden[0], x.view(-1), hidden[1].sub_(1)

    torch.manual_seed(0)
    compiled_model = Writer()
    eager_model = Writer()
    eager_model.load_state_dict(compiled_model.state_dict())
    writer = backend()
    compiled = writer.compile(compiled_model)
    for _ in range(2):
        x = torch.rand(6, 4)
        in_eager = x.clone()
        answer = compiled(x)
        close(answer, eager_model(in_eager))
        close(x, in_eager)
        answer[0].zero_()
        assert not answer[1].any()
        answer[2].zero_()
        assert not x.any()
    close(compiled_model.state_dict(), eager_model.state_dict())
    assert writer.runs_in == ["ONNX Runtime"]


def test_calls_that_need_gradients_are_pytorchs_with_one_warning(backend: Callable[..., Backend]) -> None:
    """Training goes on as before; only inference runs in engines."""
    model = small_model()
    trained = backend()
    compiled = trained.compile(model)
    x = torch.rand(3, 4)
    with torch.enable_grad():
        with pytest.warns(UserWarning, match="gradients are needed"):
            compiled(x).sum().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compiled(x).sum().backward()
    assert model[0].weight.grad is not None
    assert not trained.deployed
    close(compiled(x), model(x))
    assert len(trained.deployed) == 1


def test_reason_is_kept_where_a_graph_stays_in_pytorch(backend: Callable[..., Backend]) -> None:
    """A graph that is too small, or that draws random numbers, runs in PyTorch and says why."""
    kept = backend()
    small = kept.compile(lambda x: x * 2)
    close(small(torch.ones(2)), torch.full((2,), 2.0))
    dropout = kept.compile(lambda x: nn.functional.dropout(x * 2 + 1, training=True))
    assert dropout(torch.ones(4)).shape == (4,)
    reasons = [part.reason for part in kept.record.parts]
    assert kept.runs_in == ["PyTorch", "PyTorch"]
    assert reasons[0] == "fewer operators than min_nodes = 3"
    assert "different results of two calls on the same input" in reasons[1]


def test_autocast_around_a_call_is_pytorchs(backend: Callable[..., Backend]) -> None:
    """The dtype that autocast chooses is kept, and the reason says how to have an engine."""
    model = small_model()
    cast = backend()
    compiled = cast.compile(model)
    x = torch.rand(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        answer = compiled(x)
        assert answer.dtype == torch.bfloat16
        assert torch.equal(answer, model(x))
    assert cast.runs_in == ["PyTorch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_node": 1}, "options['min_node']: got no such option; expected one of runtime, precision, tolerance, "),
        ({"min_nodes": 0}, "options['min_nodes']: got 0; expected a positive int; pass such a value"),
        ({"runtime": "trt"}, "options['runtime']: got 'trt'; expected one of 'tensorrt', 'onnxruntime', 'auto'; "),
        ({"only_faster": "yes"}, "options['only_faster']: got 'yes'; expected one of False, True; "),
        ({"weights": "frozen"}, "options['weights']: got 'frozen'; expected one of 'compared', 'versioned'; "),
    ],
)
def test_wrong_option_is_refused_with_what_is_valid(options: dict[str, Any], message: str) -> None:
    """A misspelt option is never ignored."""
    with pytest.raises(t2e.InputError) as caught:
        CompileOptions.from_mapping(options)
    assert str(caught.value).startswith(message)


def test_backend_is_found_by_name_without_an_import(repository: Any) -> None:
    """The entry point names the function."""
    import tomllib

    with (repository / "pyproject.toml").open("rb") as file:
        points = tomllib.load(file)["project"]["entry-points"]["torch_dynamo_backends"]
    module, _, name = points["torch2engine"].partition(":")
    assert getattr(__import__(module, fromlist=[name]), name) is t2e.compile_backend
    assert GraphCompiler.compile is not None


def test_inner_writes_into_what_results_share_happen_once(backend: Callable[..., Backend]) -> None:
    """A write into an intermediate, through a view that is a result too, is neither lost nor repeated."""

    def write(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = x.exp().sqrt()
        return hidden, hidden[1].sub_(1)

    inner = backend(min_nodes=1)
    x = torch.rand(3, 4)
    close(inner.compile(write)(x), write(x))
    assert inner.runs_in == ["ONNX Runtime"]
