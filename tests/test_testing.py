"""`assert_parity` for users' own test suites: values, structure, inputs of their own, and a report to read."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from tests.support.run_scripts import run_scripts
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InputError, ParityError
from torch2engine.core.pytree import Inputs
from torch2engine.testing import assert_parity, assert_parity_on_each

X = torch.linspace(-2, 2, 60).reshape(4, 15)


class Pair(NamedTuple):
    one: Any
    two: Any


@dataclass
class Record:
    one: Any
    two: Any


def returning(value: Any) -> Callable[[torch.Tensor], Any]:
    return lambda x: value


def test_equal_modules_pass_and_report() -> None:
    """The report comes back when all is well."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(15, 3)
    report = assert_parity(layer, lambda x: x @ layer.weight.T + layer.bias, X)
    assert report.passed
    assert [(row.name, row.case, row.shape) for row in report.rows] == [("output", "", (4, 3))]
    assert report.subject == "reference vs candidate"


def test_failure_shows_the_callers_line_alone() -> None:
    """pytest shows the test that failed, and no source of this library."""
    with pytest.raises(ParityError) as caught:
        assert_parity_on_each(torch.relu, torch.abs, [X])
    assert [Path(str(entry.path)).name for entry in caught.traceback.filter(caught)] == [Path(__file__).name]


def test_wrong_candidate_raises_with_the_table() -> None:
    """The error's message is the reason and the table."""
    with pytest.raises(ParityError) as caught:
        assert_parity(torch.relu, torch.abs, X)
    message = str(caught.value)
    assert message.startswith(
        "parity, reference vs candidate: got output 'output': relative L2 is 1, at most 0.00025 "
        "is allowed; expected answers within the tolerance; if the difference is meant, pass a wider "
        "tolerance=Tolerance(...)\nreference vs "
        "candidate: FAILED"
    )
    assert message.endswith(str(caught.value.report))


@pytest.mark.parametrize(
    "inputs",
    [(X, X + 1), [X, X + 1], {"a": X, "b": X + 1}, Inputs(X, b=X + 1)],
    ids=["tuple", "list", "mapping", "Inputs"],
)
def test_every_form_of_sample_input_reaches_both(inputs: Any) -> None:
    """Inputs come in the forms of deploy's sample_input."""

    def minus(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - 2 * b

    assert assert_parity(minus, lambda a, b: a - b - b, inputs).passed
    with pytest.raises(ParityError):
        assert_parity(minus, lambda a, b: b - 2 * a, inputs)


def test_nested_inputs_and_constants_reach_both() -> None:
    """Tensors inside dicts and lists are cloned; constants stay."""

    def forward(batch: dict[str, Any], scale: float) -> torch.Tensor:
        return batch["x"][0] * scale + batch["x"][1]

    inputs = ({"x": [X, X + 1]}, 3.0)
    assert assert_parity(
        forward, lambda batch, scale: torch.add(batch["x"][1], batch["x"][0], alpha=scale), inputs
    ).passed


@pytest.mark.parametrize(
    ("expected", "got", "reason"),
    [
        pytest.param(
            (X, X), [X, X], "output is a list of 0, 1, the reference's is a tuple of 0, 1", id="list for a tuple"
        ),
        pytest.param(X, (X,), "output is a tuple of 0, the reference's is a tensor", id="tuple for a tensor"),
        pytest.param(
            {"a": X, "b": X}, {"a": X}, "output is a dict of a, the reference's is a dict of a, b", id="key missing"
        ),
        pytest.param(
            {"a": X}, {"a": X, "b": X}, "output is a dict of a, b, the reference's is a dict of a", id="key too many"
        ),
        pytest.param(
            {"a": X, "b": X},
            {"a": X, "c": X},
            "output is a dict of a, c, the reference's is a dict of a, b",
            id="other key",
        ),
        pytest.param((X, None), (X, X), "output.1 is a tensor, the reference's is None", id="tensor for None"),
        pytest.param((X, X), (X, None), "output.1 is None, the reference's is a tensor", id="None for a tensor"),
        pytest.param((X, 1), (X, 2), "output.1 is 2, the reference's is 1", id="other int"),
        pytest.param((X, 1), (X, True), "output.1 is True, the reference's is 1", id="bool for an int"),
        pytest.param((X, 1.0), (X, float("nan")), "output.1 is nan, the reference's is 1.0", id="NaN for a float"),
        pytest.param(
            (X, [X, {"k": None}]),
            (X, [X, {"k": "s"}]),
            "output.1.1.k is 's', the reference's is None",
            id="string for None in depth",
        ),
        pytest.param(
            Pair(X, X),
            (X, X),
            "output is a tuple of 0, 1, the reference's is a Pair of one, two",
            id="tuple for a NamedTuple",
        ),
        pytest.param(
            Record(X, X),
            Pair(X, X),
            "output is a Pair of one, two, the reference's is a Record of one, two",
            id="NamedTuple for a dataclass",
        ),
        pytest.param(
            BaseModelOutput(X),
            {"last_hidden_state": X},
            "the reference's is a BaseModelOutput of last_hidden_state",
            id="dict for a ModelOutput",
        ),
        pytest.param(
            X,
            X.numpy(),
            "'output': got a numpy.ndarray; expected tensors, None, bool, int, float, str, and dicts,",
            id="array for a tensor",
        ),
        pytest.param([X], [], "output is a list of nothing, the reference's is a list of 0", id="empty list"),
    ],
)
def test_other_structure_fails_with_its_reason(expected: Any, got: Any, reason: str) -> None:
    """Equal tensors in another structure are not the same result."""
    with pytest.raises(ParityError) as caught:
        assert_parity(returning(expected), returning(got), X)
    row = next(row for row in caught.value.report.rows if not row.passed)
    assert row.reason.startswith("structure: ")
    assert reason in row.reason


@pytest.mark.parametrize(
    "result",
    [Pair(X, None), Record(X, [X, 2]), BaseModelOutput(X), {"b": X, "a": (X, "s", float("nan"))}],
    ids=["namedtuple", "dataclass", "ModelOutput", "dict"],
)
def test_same_structure_passes_and_its_tensors_are_compared(result: Any) -> None:
    """Every tensor of a nested result is compared under its own name."""
    report = assert_parity(returning(result), returning(result), X)
    assert report.passed
    assert all(row.rel_l2 == 0 for row in report.rows)


def test_dict_order_is_no_difference() -> None:
    """Dicts with the same keys in another order are equal, and compared by key."""
    assert assert_parity(returning({"a": X, "b": -X}), returning({"b": -X, "a": X}), X).passed
    with pytest.raises(ParityError) as caught:
        assert_parity(returning({"a": X, "b": -X}), returning({"a": -X, "b": X}), X)
    assert "relative L2 is 2, at most 0.00025 is allowed (it matches the reference's output 'b')" in str(caught.value)


@pytest.mark.parametrize(
    ("expected", "swapped"),
    [
        ({1: X, "1": X + 1}, {"1": X, 1: X + 1}),
        ({"a": {"b": X}, "a.b": X + 1}, {"a.b": X, "a": {"b": X + 1}}),
    ],
    ids=["int and str keys", "dotted key"],
)
def test_values_are_compared_by_their_paths(expected: Any, swapped: Any) -> None:
    """Two values whose paths are spelt alike can't be swapped, and the order of a dict is no difference."""
    assert_parity(lambda x: expected, lambda x: dict(reversed(expected.items())), X)
    with pytest.raises(ParityError) as error:
        assert_parity(lambda x: expected, lambda x: swapped, X)
    assert [row.passed for row in error.value.report.rows] == [False, False]


def test_result_without_tensors_fails() -> None:
    """Constants alone are no parity: nothing was compared."""
    with pytest.raises(ParityError) as caught:
        assert_parity(returning(None), returning(None), X)
    assert "the reference returns no tensor, so nothing was compared" in str(caught.value)


def test_each_side_gets_its_own_inputs() -> None:
    """Writing into an input disturbs neither the other side nor the caller, and is noted."""

    def doubling(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) + keep

    given = X.clone()
    keep = torch.full_like(X, torch.nan)
    keep[1:] = 1
    report = assert_parity(doubling, lambda x, keep: keep.add_(2 * x), Inputs(given, keep=keep))
    assert torch.equal(given, X)
    assert report.notes == ("the reference writes into input '0'", "the candidate writes into input 'keep'")


def test_what_both_write_is_compared() -> None:
    """A candidate that returns the right thing and writes another fails, by the input's name."""

    def adding(amount: float) -> Any:
        return lambda x, y: (y.add_(amount), x * 2)[1]

    assert [row.name for row in assert_parity(adding(1), adding(1), (X, X + 1)).rows] == ["output", "1 (written)"]
    with pytest.raises(ParityError, match=r"output '1 \(written\)'"):
        assert_parity(adding(1), adding(2), (X, X + 1))


def test_one_tensor_passed_twice_stays_one() -> None:
    """Clones alias where the caller's tensors do, so a write through one argument is seen through the other."""

    def both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.add_(1)
        return b

    assert assert_parity(both, lambda a, b: a + 1, (X, X)).passed


def test_shared_state_does_not_hide_a_difference() -> None:
    """A candidate that overwrites the buffer that the reference returned is held against the reference's answer."""
    buffer = torch.zeros_like(X)
    with pytest.raises(ParityError):
        assert_parity(lambda x: buffer.copy_(x), lambda x: buffer.copy_(x + 1), X)


def test_mode_and_grads_stay_as_they_are() -> None:
    """Modules run in the mode that they are in, without grad, also for inputs that require grad."""
    seen: list[tuple[bool, bool, bool]] = []

    class Probe(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.is_grad_enabled(), x.requires_grad))
            return x * 2

    probe = Probe().train()
    assert assert_parity(probe, Probe().eval(), X.clone().requires_grad_()).passed
    assert seen == [(True, False, False), (False, False, False)]
    assert probe.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("dtypes", "precision"),
    [
        ([torch.float32], "fp32"),
        ([torch.float64], "fp32"),
        ([torch.int64], "fp32"),
        ([torch.float32, torch.float16], "fp16"),
        ([torch.float16, torch.bfloat16], "bf16"),
    ],
    ids=str,
)
def test_tolerance_follows_the_lowest_dtype(dtypes: list[torch.dtype], precision: str) -> None:
    """Without a tolerance the reference's outputs decide."""
    result = [X.to(dtype) for dtype in dtypes]
    assert assert_parity(returning(result), returning(result), X).tolerance == Tolerance.default(precision)


def test_tolerance_and_precision_are_obeyed() -> None:
    """A tolerance, or the precision that stands for one, replaces the default; both at once is an error."""
    near: Any = (lambda x: x, lambda x: x * 1.003, X)
    with pytest.raises(ParityError):
        assert_parity(*near)
    assert assert_parity(*near, precision="tf32").tolerance == Tolerance.default("tf32")
    assert assert_parity(*near, tolerance=Tolerance(rel_l2=0.1, max_rel=0.1)).passed
    with pytest.raises(InputError) as caught:
        assert_parity(*near, tolerance=Tolerance(), precision="fp16")
    assert str(caught.value) == (
        "assert_parity: got both tolerance and precision='fp16'; expected one of them; leave out precision"
    )


def test_result_that_is_no_pytree_is_refused() -> None:
    """A reference that returns something else than tensors and containers is an error, not a verdict."""
    with pytest.raises(InputError) as caught:
        assert_parity(returning(np.zeros(3)), returning(np.zeros(3)), X)
    assert str(caught.value).startswith("'output': got a numpy.ndarray")


def test_every_case_is_judged_by_name() -> None:
    """All cases run, and the error names each that failed."""
    cases = {"small": X[:1], "large": X, "negative": -X.abs()}
    report = assert_parity_on_each(torch.relu, lambda x: x.clamp(min=0), cases)
    assert [row.case for row in report.rows] == ["small", "large", "negative"]
    with pytest.raises(ParityError) as caught:
        assert_parity_on_each(torch.abs, lambda x: x if len(x) > 1 else x.abs(), cases)
    assert [row.passed for row in caught.value.report.rows] == [True, False, False]
    assert "output 'output' of case 'large': relative L2 is" in str(caught.value)
    assert "output 'output' of case 'negative': relative L2 is 2" in str(caught.value)


def test_iterable_of_cases_is_numbered() -> None:
    """Cases without names are numbered, and may come from a generator; notes name them."""
    report = assert_parity_on_each(torch.relu_, torch.relu, (X[:rows] - 9 for rows in (1, 2)), precision="fp16")
    assert [row.case for row in report.rows] == ["0", "1"]
    assert report.notes == tuple(f"the reference writes into input '0' of case '{case}'" for case in "01")
    assert report.tolerance == Tolerance.default("fp16")


def test_first_case_decides_the_tolerance_of_all() -> None:
    """One report has one tolerance, also if later cases return another dtype."""
    report = assert_parity_on_each(torch.relu, torch.relu, [X.half(), X, X.bfloat16()])
    assert report.tolerance == Tolerance.default("fp16")
    assert [row.dtype for row in report.rows] == ["float16", "float32", "bfloat16"]


def test_resized_input_is_noted() -> None:
    """An input that the reference resizes counts as written to."""
    report = assert_parity(lambda x: x.unsqueeze_(0).sum(0), lambda x: x.clone(), X)
    assert report.notes == ("the reference writes into input '0'",)


def test_no_case_at_all_fails() -> None:
    """An empty data set is a failure, not a success."""
    with pytest.raises(ParityError) as caught:
        assert_parity_on_each(torch.relu, torch.relu, [])
    assert str(caught.value).startswith(
        "parity, reference vs candidate: got no comparison; expected answers within the tolerance; "
        "compare one case at least"
    )


def test_pytest_shows_the_callers_line_and_the_table(tmp_path: Path) -> None:
    """In a user's suite a failure ends at the user's own line, with the table below it."""
    suite = tmp_path / "test_users.py"
    suite.write_text(
        textwrap.dedent(
            """
            import torch
            from torch2engine.testing import assert_parity, assert_parity_on_each

            def test_one():
                assert_parity(torch.relu, torch.abs, -torch.ones(3))

            def test_each():
                assert_parity_on_each(torch.relu, torch.abs, [-torch.ones(3)])
            """
        )
    )
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    (done,) = run_scripts([["-m", "pytest", *options, str(suite)]])
    assert ">       assert_parity(torch.relu, torch.abs, -torch.ones(3))" in done.out, done.out
    assert ">       assert_parity_on_each(torch.relu, torch.abs, [-torch.ones(3)])" in done.out
    assert "E       reference vs candidate: FAILED, 0 of 1 outputs passed" in done.out
    assert "torch2engine/testing.py" not in done.out
    assert "2 failed" in done.out


def test_parity_needs_no_torch(run_python: Callable[[str], Any]) -> None:
    """Judging arrays loads numpy and no torch."""
    loaded = run_python(
        "import json, sys, numpy as np\n"
        "from torch2engine.parity.compare import compare\n"
        "from torch2engine.core.config import Tolerance\n"
        "row = compare({'y': np.ones(3)}, {'y': np.ones(3)}, Tolerance())[0]\n"
        "print(json.dumps([row.passed, 'torch' in sys.modules]))"
    )
    assert loaded == [True, False]
