"""torch.export's refusals in the user's words: which axis, which line, and what to write instead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import Function, TwoInputs, exported, line_of
from torch2engine.core.errors import DynamicAxisError, ExportError
from torch2engine.core.spec import Axis
from torch2engine.exporter.sizes.shape_guards import ShapeGuard, ShapeGuards, record_guards

X = torch.randn(4, 3)
HERE = Path(__file__)


def reshaped(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Fixes the batch that it was written with."""
    return x.view(4, 3)


def added(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Adds a table of one length."""
    table = torch.ones(4, 3)
    return x + table


def at_most_four(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Does something else with more."""
    if x.shape[0] > 4:
        return x * 2
    return x


def at_least_four(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Does something else with less."""
    if x.shape[0] >= 4:
        return x * 2
    return x


def not_two(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Does something else with two."""
    if x.shape[0] == 2:
        return x * 2
    return x


def paired(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Takes rows in pairs."""
    return x.reshape(x.shape[0] // 2, 2, 3)


def asserted(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Says itself how much it takes."""
    assert x.shape[0] <= 6, "too many"
    return x * 2


def branched(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Looks into the tensor."""
    if x.sum() > 0:
        return x
    return -x


def measured(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Cuts by a value."""
    length = int(x.abs().sum().item()) % 3
    return x[:length]


def through_numpy(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Leaves PyTorch."""
    return torch.from_numpy(x.numpy() * 2)


def refusal(function: Callable[..., Any], low: int = 1, high: int = 8, name: str = "batch") -> ExportError:
    """What export says about this function with the axis low..high."""
    with pytest.raises(ExportError) as error:
        exported(Function(function), X, {"x": {0: Axis(name, low, 4, high)}})
    return error.value


# the axis is pinned


@pytest.mark.parametrize(
    ("function", "line"),
    [(reshaped, "view(4, 3)"), (added, "x + table")],
)
def test_axis_that_the_model_pins_is_named_with_the_line(function: Callable[..., Any], line: str) -> None:
    """The one size that works, and the user's own line that says so."""
    error = refusal(function)
    assert isinstance(error, DynamicAxisError)
    assert error.axis == "batch"
    assert error.source == line_of(function, line)
    assert str(error) == (
        "axis 'batch': got a model that pins it down; expected one that also works with other sizes "
        "than batch = 4; compute with x.shape or -1 instead of a fixed size there, or leave 'batch' "
        f"out of dynamic_axes (at {error.source})"
    )
    assert error.source.startswith(f"{HERE}:")


def test_pitfall_06_line_that_pins_an_axis_is_named_inside_a_submodule() -> None:
    """Where torch would make the axis static silently, the line that fixed it is told, however deep it lies."""
    with pytest.raises(DynamicAxisError) as error:
        exported(nn.Sequential(nn.Linear(3, 3), nn.Sequential(Function(reshaped))), X, {"input": {0: "batch"}})
    assert error.value.source == line_of(reshaped, "view(4, 3)")


class Steps(nn.Module):
    """A loop over time of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], 4)
        for step in range(x.shape[1]):
            h, c = self.cell(x[:, step], (h, c))
        return h


def test_loop_over_time_is_refused_at_its_line() -> None:
    """A Python loop is unrolled: an error that names the axis and the loop, never a graph of one length."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Steps(), torch.randn(4, 5, 3), {"x": {0: "batch", 1: "length"}})
    assert error.value.axis == "length"
    assert error.value.source == line_of(Steps, "for step")


# the range is narrower


@pytest.mark.parametrize(
    ("function", "line", "allowed", "fix"),
    [
        (
            at_most_four,
            "if x.shape",
            "sizes for which batch <= 4, which is wrong at batch = 5..8",
            "give the range that it holds for: Axis('batch', 1, 4, 4)",
        ),
        (
            at_least_four,
            "if x.shape",
            "sizes for which batch >= 4, which is wrong at batch = 1..3",
            "give the range that it holds for: Axis('batch', 4, 4, 8)",
        ),
        (
            asserted,
            "assert x.shape",
            "sizes for which batch <= 6, which is wrong at batch = 7..8",
            "give the range that it holds for: Axis('batch', 1, 4, 6)",
        ),
        (
            not_two,
            "if x.shape",
            "sizes for which batch != 2, which is wrong at batch = 2",
            "give the range that it holds for: Axis('batch', 3, 4, 8)",
        ),
        (
            paired,
            "return x.reshape",
            "sizes for which 3*batch == 6*((batch//2)), which is wrong at batch = 1, 3, 5, 7",
            "take such sizes only: Axis('batch', 2, 4, 8, multiple_of=2)",
        ),
    ],
)
def test_range_that_the_model_does_not_hold_for_is_told(
    function: Callable[..., Any], line: str, allowed: str, fix: str
) -> None:
    """The condition in terms of the axis, the Axis that would satisfy it, and the line of the condition."""
    error = refusal(function)
    assert isinstance(error, DynamicAxisError)
    assert (error.axis, error.allowed, error.fix) == ("batch", allowed, fix)
    assert error.got == "a model that does not hold for all of its range"
    assert error.source == line_of(function, line)


@pytest.mark.parametrize(
    ("limits", "allowed", "axis"),
    [
        ({"max": 6}, "sizes for which batch <= 6, which is wrong at batch = 7..8", "Axis('batch', 1, 4, 6)"),
        ({"min": 3}, "sizes for which batch >= 3, which is wrong at batch = 1..2", "Axis('batch', 3, 4, 8)"),
    ],
)
def test_range_that_torch_narrows_without_a_guard_is_told(limits: dict[str, int], allowed: str, axis: str) -> None:
    """A model may say what it takes without a branch: then torch's ranges alone show it."""

    def constrained(x: torch.Tensor, w: Any) -> torch.Tensor:
        torch.sym_constrain_range(x.shape[0], **limits)
        return x * 2

    error = refusal(constrained)
    assert isinstance(error, DynamicAxisError)
    assert (error.axis, error.allowed, error.fix) == ("batch", allowed, f"give the range that it holds for: {axis}")


@pytest.mark.parametrize(
    ("function", "axis"),
    [
        (at_most_four, Axis("batch", 1, 4, 4)),
        (at_least_four, Axis("batch", 4, 4, 8)),
        (asserted, Axis("batch", 1, 4, 6)),
        (not_two, Axis("batch", 3, 4, 8)),
        (paired, Axis("batch", 2, 4, 8, multiple_of=2)),
    ],
)
def test_range_that_the_error_asks_for_is_taken(function: Callable[..., Any], axis: Axis) -> None:
    """Doing what the error says mends it."""
    artifact, _ = exported(Function(function), X, {"x": {0: axis}})
    assert artifact.signature.axes == (axis,)


def test_axis_whose_name_starts_with_an_underscore_keeps_it() -> None:
    """The user's name is told, not torch's."""
    error = refusal(at_least_four, name="_n")
    assert isinstance(error, DynamicAxisError)
    assert error.axis == "_n"
    assert error.source == line_of(at_least_four, "if x.shape")
    assert error.fix == "give the range that it holds for: Axis('_n', 4, 4, 8)"


def test_axis_with_steps_is_told_by_its_own_name() -> None:
    """multiple_of hides a symbol of torch's that the user never sees."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(reshaped), X, {"x": {0: Axis("batch", 2, 4, 8, multiple_of=2)}})
    assert error.value.axis == "batch"
    assert error.value.allowed == "one that also works with other sizes than batch = 4"
    assert error.value.source == line_of(reshaped, "view(4, 3)")


def test_axis_with_steps_is_told_the_range_that_holds() -> None:
    """The sizes told are multiples of the axis's step, and so is the range that holds."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(at_most_four), X, {"x": {0: Axis("batch", 2, 4, 8, multiple_of=2)}})
    source = line_of(at_most_four, "if x.shape")
    assert str(error.value) == (
        "axis 'batch': got a model that does not hold for all of its range; expected sizes for which "
        "batch <= 4, which is wrong at "
        f"batch = 6..8; give the range that it holds for: Axis('batch', 2, 4, 4, multiple_of=2) (at {source})"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("n", "m"),
        (Axis("n", 2, 4, 8, multiple_of=2), Axis("m", 2, 4, 8, multiple_of=2)),
        (Axis("n", 2, 4, 8, multiple_of=2), Axis("m", 2, 4, 8)),
    ],
    ids=["plain", "both in steps", "one in steps"],
)
def test_axes_that_must_be_equal_are_named(first: Any, second: Any) -> None:
    """Two names for one size: the error gives the name to use for both, and the line that needs it."""
    with pytest.raises(DynamicAxisError) as error:
        exported(TwoInputs(), (X, X), {"a": {0: first}, "b": {0: second}})
    source = line_of(TwoInputs, "2 * a + b")
    assert error.value.axis == "n"
    assert str(error.value) == (
        "axes 'm' and 'n': got a model that needs them to be equal; expected one name for sizes that "
        f"are always equal; call both 'm' in dynamic_axes (at {source})"
    )


# values


@pytest.mark.parametrize(
    ("function", "line"), [(branched, "if x.sum()"), (measured, "int(x.abs()")], ids=["branch", "size"]
)
def test_pitfall_18_control_flow_on_values_names_the_line_and_the_recipe(
    function: Callable[..., Any], line: str
) -> None:
    """torch's page about data-dependent expressions becomes the user's line and what to write there."""
    error = refusal(function)
    assert str(error) == (
        "torch.export: got a branch or a shape that depends on a tensor's values; expected control "
        "flow that does not look into tensors; use torch.where for a choice of values, torch.cond "
        f"for a branch, torch.clamp for a bound (at {error.source})"
    )
    assert error.source == line_of(function, line)


def test_other_failures_keep_torchs_first_line_and_the_users() -> None:
    """What has no words of its own is told with torch's, at the user's line, and torch's exception stays below."""
    error = refusal(through_numpy)
    assert error.got == '"RuntimeError: .numpy() is not supported for tensor subclasses."'
    assert error.fix == "see the cause of this exception (`__cause__`) for torch's whole account"
    assert error.source == line_of(through_numpy, "x.numpy()")
    assert isinstance(error.__cause__, RuntimeError)


def test_structure_that_changes_under_export_is_refused() -> None:
    """A forward that returns something else while it is exported is not what was checked."""
    model = Function(lambda x, w: (x, x) if torch.compiler.is_exporting() else x)
    with pytest.raises(ExportError) as error:
        exported(model, X)
    assert str(error.value) == (
        "model: got a result with another structure while it is exported than when it is called; "
        "expected one structure; don't look at torch.compiler.is_exporting() and the like in forward"
    )


def test_number_that_follows_an_axis_can_not_leave_the_engine() -> None:
    """A SymInt in the result is refused with the way out."""
    error = refusal(lambda x, w: (x, x.shape[0]))
    assert error.subject == "result 'output.1'"
    assert error.fix == "a Python number that follows a dynamic axis can't leave an engine: return a tensor instead"


def test_source_is_empty_where_torch_says_nothing() -> None:
    """No line is better than a wrong one."""
    guards = ShapeGuards({(0, 0): "n"}, {"s0": (0, 0)}, [ShapeGuard("s1 > 4", "model.py:3", is_pinned=False)])
    assert guards.source_of("n") == ""
    assert guards.source_of("m") == ""
    guards.guards.append(ShapeGuard("s0 > 4", "", is_pinned=False))
    guards.guards.append(ShapeGuard("s0 > 5", "model.py:5", is_pinned=False))
    guards.guards.append(ShapeGuard("s0", "model.py:9", is_pinned=True))
    assert guards.source_of("n") == "model.py:9"


def test_torchs_logger_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    """Its level and filters are the user's, and only errors pass meanwhile."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    filters = list(logger.filters)
    with caplog.at_level(logging.ERROR, logger=logger.name):
        with record_guards({}) as guards:
            logger.info("eval s7 <= 4 [guard added]")
            logger.error("broken")
        assert (logger.level, logger.filters) == (logging.ERROR, filters)
    assert [guard.condition for guard in guards.guards] == ["s7 <= 4"]
    assert [record.getMessage() for record in caplog.records] == ["broken"]


@pytest.fixture(params=["logging.disable", "dictConfig"])
def silenced(request: pytest.FixtureRequest) -> Iterator[None]:
    """What users do to logs that are not theirs."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    if request.param == "logging.disable":
        logging.disable(logging.CRITICAL)
    else:
        logger.disabled = True  # logging.config.dictConfig does so by default
    yield
    assert logger.disabled == (request.param == "dictConfig")
    assert not logger.isEnabledFor(logging.CRITICAL)
    logging.disable(logging.NOTSET)
    logger.disabled = False


@pytest.mark.usefixtures("silenced")
def test_line_that_pins_an_axis_is_named_though_logs_are_silenced() -> None:
    """Silence on the user's side takes nothing from the error."""
    assert refusal(reshaped).source == line_of(reshaped, "view(4, 3)")


def test_ranges_are_proved_without_torchs_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another wording of torch's takes the lines from errors, and no model from the user."""
    monkeypatch.setattr(ShapeGuards, "read_record", lambda self, record: False)

    def halves(x: torch.Tensor, w: Any) -> torch.Tensor:
        return x.chunk(2)[1].sum() + x[x.shape[0] // 2 :] + w[0]

    artifact, _ = exported(Function(halves), X, {"x": {0: Axis("batch", 2, 4, 9)}})
    assert artifact.signature.axes[0].range == (2, 4, 9)
