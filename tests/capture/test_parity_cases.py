"""The cases that a candidate is judged on: every size of every profile, and values that show what is mixed up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.support import deploy_models
from tests.support.models import Conditional, Function, TwoInputs, captured, line_of
from torch2engine.capture.host_trial import HostTrial
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import DynamicAxisError, ExportError
from torch2engine.core.spec import Axis

DOUBLE = Function(lambda x, w: x * 2)


def run(
    model: nn.Module, sample: Any, axes: Any = None, profiles: Any = None
) -> tuple[dict[str, ParityCase], tuple[str, ...]]:
    """The cases by name, and the notes."""
    settled = captured(model, sample, axes, profiles)
    with undisturbed(model):
        found, notes = make_parity_cases(settled)
    assert len({case.name for case in found}) == len(found)
    return {case.name: case for case in found}, notes


def inputs(sample: torch.Tensor, axis: Axis) -> dict[str, torch.Tensor]:
    """The one input of every case."""
    return {name: case.inputs[0] for name, case in run(DOUBLE, sample, {"x": {0: axis}})[0].items()}


class Lookup(nn.Module):
    """An embedding of ten words, which refuses an eleventh, under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.table(ids) * mask[..., None]


class Increasing(nn.Module):
    """Refuses whatever does not increase, as a table of time steps would."""

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_exporting() and not bool((steps.diff() > 0).all()):
            raise ValueError("steps must increase")
        return steps * 2


class OnlySmall(nn.Module):
    """Fails above a batch of 4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 4:
            raise ValueError("too large")
        return x * 2


# which cases


@pytest.mark.parametrize(
    ("axis", "sizes"),
    [
        (Axis("n", 1, 4, 8), {"min": 1, "opt": 4, "max": 8, "random": 5}),
        (Axis("n", 1, 2, 16), {"min": 1, "opt": 2, "max": 16, "random": 8}),
        (Axis("n", 1, 8, 8), {"min": 1, "opt": 8, "random": 4}),
        (Axis("n", 2, 2, 4), {"min": 2, "max": 4, "random": 3}),
        (Axis("n", 1, 1, 2), {"min": 1, "max": 2, "random": 2}),
        (Axis("n", 4, 8, 32, multiple_of=4), {"min": 4, "opt": 8, "max": 32, "random": 16}),
        (Axis("n", 4, 4, 8, multiple_of=4), {"min": 4, "max": 8, "random": 8}),
    ],
)
def test_cases_lie_at_every_corner_and_between(axis: Axis, sizes: dict[str, int]) -> None:
    """min, opt and max once each, and a random input at a size between that is not opt, in the axis's steps."""
    found = inputs(torch.randn(4 if axis.multiple_of == 4 else 2, 3), axis)
    assert {name: leaf.shape[0] for name, leaf in found.items()} == sizes
    assert all(leaf.shape[1:] == (3,) for leaf in found.values())


def test_cases_of_several_profiles_are_numbered() -> None:
    """Every profile has cases of its own."""
    found, _ = run(DOUBLE, torch.randn(2, 3), {"x": {0: "n"}}, [{"n": (1, 1, 1)}, {"n": (2, 4, 8)}])
    sizes = {name: case.inputs[0].shape[0] for name, case in found.items()}
    assert sizes == {
        "profile 0 min": 1,
        "profile 0 random": 1,
        "profile 1 min": 2,
        "profile 1 opt": 4,
        "profile 1 max": 8,
        "profile 1 random": 5,
    }


def test_profiles_that_share_a_size_share_the_models_answer() -> None:
    """The model runs once on the sample at a size. Each profile has its case, and random values of its own."""
    profiles = [{"n": (1, 4, 8)}, {"n": (4, 4, 4)}]
    found, _ = run(DOUBLE, torch.randn(2, 3), {"x": {0: "n"}}, profiles)
    first, second = found["profile 0 opt"], found["profile 1 min"]
    assert first.inputs[0] is second.inputs[0]
    assert torch.equal(first.outputs["output"], second.outputs["output"])
    assert not torch.equal(found["profile 1 random"].inputs[0], first.inputs[0])


@pytest.mark.parametrize(("fixed", "size"), [((), 5), ((5,), 4), ((4, 5, 6), 3), (tuple(range(1, 9)), 5)])
def test_wide_profile_has_a_case_that_no_narrower_one_answers(fixed: tuple[int, ...], size: int) -> None:
    """Its engine would go unseen if every case fell to a profile of one size within it."""
    profiles = [{"n": (1, 4, 8)}, *({"n": (one, one, one)} for one in fixed)]
    found, _ = run(DOUBLE, torch.randn(2, 3), {"x": {0: "n"}}, profiles)
    name = "profile 0 random" if fixed else "random"
    assert found[name].inputs[0].shape[0] == size


def test_case_of_a_wide_profile_may_differ_in_one_axis_alone() -> None:
    """With two axes it is enough that one of them lies outside the narrower profile."""
    model = deploy_models.Pair()
    axes = {name: {0: "batch", 1: "width"} for name in ("a", "b")}
    profiles = [{"batch": (1, 4, 8), "width": (1, 4, 8)}, {"batch": (5, 5, 5), "width": (1, 4, 8)}]
    found, _ = run(model, (torch.randn(2, 3), torch.randn(2, 3)), axes, profiles)
    assert found["profile 0 random"].inputs[0].shape == (4, 5)


def test_profiles_that_need_it_have_a_case_with_the_samples_values() -> None:
    """Random values may be refused, so sizes of a profile's own come with the sample's values too."""
    wide, crossing = {"batch": (1, 4, 8), "width": (1, 4, 8)}, {"batch": (1, 4, 8), "width": (4, 4, 4)}
    corner = [{"batch": (size,) * 3, "width": (size,) * 3} for size in (1, 4, 8)]
    across = {"batch": (5, 5, 5), "width": (1, 4, 8)}
    axes = {name: {0: "batch", 1: "width"} for name in ("a", "b")}
    found, _ = run(deploy_models.Pair(), (torch.randn(2, 3),) * 2, axes, [wide, crossing, across, *corner])
    shapes = {name: tuple(case.inputs[0].shape) for name, case in found.items()}
    for name in ("own", "random"):
        batch, width = shapes[f"profile 0 {name}"]
        assert batch != 5
        assert width != 4
    assert "profile 1 own" not in shapes


def test_equal_profiles_are_settled_by_their_order() -> None:
    """Where two are as narrow the first answers, and one that answers nothing is told of."""
    found, notes = run(DOUBLE, torch.randn(2, 3), {"x": {0: "n"}}, [{"n": (1, 4, 8)}, {"n": (4, 8, 11)}])
    assert found["profile 1 random"].inputs[0].shape[0] == 9
    assert not notes
    _, notes = run(DOUBLE, torch.randn(2, 3), {"x": {0: "n"}}, [{"n": (1, 4, 8)}, {"n": (1, 2, 8)}])
    assert notes == ("profile 1 (n 1..8 (opt 2)) answers nothing: others that are as narrow hold all of its sizes",)


def test_model_without_axes_has_the_sample_and_a_random_case() -> None:
    """The sample itself is a case, bit for bit."""
    sample = torch.randn(2, 3)
    found, _ = run(DOUBLE, sample)
    assert list(found) == ["sample", "random"]
    assert torch.equal(found["sample"].inputs[0], sample)
    assert not torch.equal(found["random"].inputs[0], sample)


def test_shared_axes_move_together() -> None:
    """Inputs with an axis of one name have one size in every case."""
    axes = {"a": {0: Axis("n", 1, 4, 8), 1: Axis("m", 1, 3, 6)}, "b": {0: "n"}}
    found, _ = run(TwoInputs(), (torch.randn(4, 3), torch.randn(4, 1)), axes)
    assert [[tuple(leaf.shape) for leaf in case.inputs] for case in found.values()] == [
        [(1, 1), (1, 1)],
        [(4, 3), (4, 1)],
        [(8, 6), (8, 1)],
        [(5, 4), (5, 1)],
    ]


def test_cases_hold_the_references_answers() -> None:
    """Each answer belongs to its input, under the outputs' names."""
    model = Function(lambda x, w: {"twice": x * 2, "sum": (x * w).sum()})
    found, _ = run(model, torch.randn(2, 3), {"x": {0: Axis("n", 1, 2, 4)}})
    for case in found.values():
        assert list(case.outputs) == ["twice", "sum"]
        assert torch.equal(case.outputs["twice"], case.inputs[0] * 2)
        assert torch.allclose(case.outputs["sum"], (case.inputs[0] * model.w).sum())
        assert not any(output.requires_grad for output in case.outputs.values())


def test_cases_are_the_same_every_time() -> None:
    """A failure can be looked at again."""
    sample = torch.randn(2, 3)
    first, second = inputs(sample, Axis("n", 1, 2, 8)), inputs(sample, Axis("n", 1, 2, 8))
    assert all(torch.equal(first[name], second[name]) for name in first)


# which values


def test_larger_cases_have_rows_of_their_own() -> None:
    """A repeated sample would hide mixed-up rows, so repeated floats get noise inside the sample's range."""
    sample = torch.randn(2, 3)
    grown = inputs(sample, Axis("n", 1, 2, 8))["max"]
    assert len(grown.unique(dim=0)) == 8
    assert grown.min() >= sample.min()
    assert grown.max() <= sample.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "sample",
    [torch.zeros(2, 3), torch.zeros(1, 1), torch.ones(2, 3), torch.full((1, 1), 5.0), torch.rand(2, 3)],
    ids=["zeros", "one zero", "ones", "one five", "uniform"],
)
def test_random_case_is_never_constant(sample: torch.Tensor, dtype: torch.dtype) -> None:
    """A sample of zeros is what people write in a hurry; the random case still has values."""
    values = inputs(sample.to(dtype), Axis("n", 1, 1, 8))["random"]
    assert values.dtype == dtype
    assert len(values.unique()) > 2


def test_random_case_stays_in_the_samples_range() -> None:
    """Positive stays positive: logarithms and square roots are not fed what they never see."""
    sample = torch.rand(4, 50) + 3
    values = inputs(sample, Axis("n", 1, 4, 8))["random"]
    assert sample.min() <= values.min() < values.max() <= sample.max()
    assert values.std() > 0.1


def test_ids_stay_in_the_vocabulary() -> None:
    """Integers are drawn between the sample's least and largest, so an embedding can look them up."""
    ids, mask = torch.tensor([[3, 9, 5, 4], [7, 8, 3, 6]]), torch.ones(2, 4, dtype=torch.int64)
    found, notes = run(Lookup(), (ids, mask), {name: {0: Axis("n", 1, 2, 64)} for name in ("ids", "mask")})
    assert notes == ()
    values = found["random"].inputs[0]
    assert values.dtype == torch.int64
    assert set(values.unique().tolist()) == set(range(3, 10))
    assert set(found["max"].inputs[0].unique().tolist()) == set(range(3, 10))


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
MASKS: dict[str, Callable[[], torch.Tensor]] = {
    "int64": lambda: MASK,
    "bool": lambda: MASK.bool(),
    "int32": lambda: MASK.int(),
    "uint8": lambda: MASK.to(torch.uint8),
    "-inf": lambda: torch.zeros(3, 4).masked_fill(MASK == 0, float("-inf")),
    "lowest": lambda: torch.zeros(3, 4).masked_fill(MASK == 0, torch.finfo(torch.float32).min),
    "-1e4": lambda: torch.zeros(3, 4).masked_fill(MASK == 0, -1e4),
    "lowest half": lambda: torch.zeros(3, 4).half().masked_fill(MASK == 0, torch.finfo(torch.float16).min),
}


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_masks_stay_masks(make: Callable[[], torch.Tensor]) -> None:
    """Rows of a mask are reordered, never drawn: a random one may mask everything, and half a mask is none."""
    sample = make()
    rows = {tuple(row) for row in sample.tolist()}
    for name, values in inputs(sample, Axis("n", 1, 3, 8)).items():
        assert values.dtype == sample.dtype
        assert {tuple(row) for row in values.tolist()} <= rows, name
    values = inputs(sample, Axis("n", 1, 3, 12))["random"]
    assert values.tolist() != [sample.tolist()[i % 3] for i in range(len(values))]


def test_sample_with_infinities_is_resized_only() -> None:
    """No range can be read from it."""
    sample = torch.tensor([[1.0, float("inf"), 3.0]])
    found = inputs(sample, Axis("n", 1, 2, 4))
    assert all(torch.equal(values, sample.expand_as(values)) for values in found.values())


@pytest.mark.parametrize(
    "sample",
    [
        torch.tensor(2.5),
        torch.tensor(7),
        torch.tensor(True),
        torch.ones(0, 3),
        torch.tensor([torch.iinfo(torch.int64).max, 0, 5]),
    ],
    ids=["float scalar", "int scalar", "bool scalar", "empty", "largest int"],
)
def test_odd_samples_have_cases_too(sample: torch.Tensor) -> None:
    """Scalars, empty tensors and the largest integers are no reason to fail."""
    found, notes = run(Function(lambda x, w: x.clone()), sample)
    assert list(found) == ["sample", "random"]
    assert notes == ()
    assert all(case.inputs[0].shape == sample.shape for case in found.values())


def test_cases_ignore_the_default_device() -> None:
    """A user's torch.set_default_device does not reach the random numbers."""
    with torch.device("meta"):
        found = inputs(torch.arange(6.0, device="cpu").reshape(2, 3), Axis("n", 1, 2, 4))
        ids = inputs(torch.arange(6, device="cpu").reshape(2, 3), Axis("n", 1, 2, 4))
        masks = inputs(torch.tensor([[True], [False]], device="cpu"), Axis("n", 1, 2, 4))
    assert {leaf.device.type for leaves in (found, ids, masks) for leaf in leaves.values()} == {"cpu"}


# what the model refuses


def test_model_that_refuses_random_values_is_noted() -> None:
    """The corners are judged, and a note says that the random case is missing and why."""
    found, notes = run(Increasing(), torch.arange(8.0))
    assert list(found) == ["sample"]
    assert notes == (
        "no case 'random': the model refuses random values drawn from the sample's range (a failure "
        "of PyTorch itself on "
        "inputs of shape [8]: ValueError: steps must increase)",
    )


def test_model_that_fails_inside_its_range_is_reported() -> None:
    """A size that a profile promises must work in PyTorch first; the error names the axis and the user's line."""
    with pytest.raises(DynamicAxisError) as error:
        run(OnlySmall(), torch.randn(2, 3), {"x": {0: Axis("n", 1, 2, 8)}})
    source = line_of(OnlySmall, "raise ValueError")
    assert error.value.axis == "n"
    assert error.value.source == source
    assert str(error.value) == (
        "axes n = 8: got a failure of PyTorch itself on inputs of shape [8, 3]: ValueError: too "
        "large; expected a model that holds over "
        f"the whole of every axis; narrow the Axis, or correct the line (at {source})"
    )


def test_result_that_follows_a_size_as_a_number_is_reported() -> None:
    """A Python number is a constant in an engine, so it may not depend on an axis."""
    with pytest.raises(ExportError) as error:
        run(Function(lambda x, w: (x, len(x))), torch.randn(2, 3), {"x": {0: Axis("n", 1, 2, 8)}})
    assert error.value.got == "a result with another structure, or other constants, at another size of its dynamic axes"


def test_both_sides_of_a_branch_are_seen() -> None:
    """The random case is another input, so a branch on values is not judged on one side by the sample's likes alone."""
    found, _ = run(Conditional(), torch.full((2, 3), 0.5))
    sums = {name: float(case.inputs[0].sum()) for name, case in found.items()}
    assert sums["sample"] == 3.0
    assert sums["random"] != 3.0


# on a GPU, where an index out of range is no exception


class Positions(nn.Module):
    """Adds a row of a table of `rows` for every place; remembers the sizes that reached it, but not its copies."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 3)
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return x + self.table(torch.arange(len(x)))


class Single(Positions):
    """Refuses to be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("there is one of me")


def run_on_gpu(model: nn.Module, axis: Axis, profiles: Any = None) -> tuple[dict[str, ParityCase], tuple[str, ...]]:
    """The cases by name and the notes, as of a model on a GPU with a sample of 4 rows."""
    call = captured(model, torch.ones(4, 3), {"x": {0: axis}}, profiles)
    call = replace(call, trial=HostTrial(call.reference, call.sample))
    with undisturbed(model):
        found, notes = make_parity_cases(call)
    return {case.name: case for case in found}, notes


def test_cases_of_a_model_on_a_gpu_are_the_same_as_on_the_cpu() -> None:
    """The trial changes nothing where nothing fails."""
    model = Positions(16)
    found, notes = run_on_gpu(model, Axis("n", 1, 4, 8))
    expected, _ = run(Positions(16), torch.ones(4, 3), {"x": {0: Axis("n", 1, 4, 8)}})
    assert notes == ()
    assert {name: case.inputs[0].tolist() for name, case in found.items()} == {
        name: case.inputs[0].tolist() for name, case in expected.items()
    }


def test_size_that_the_cpu_refuses_never_reaches_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of 6 positions at a size of 8 is an error; the live model is asked for no more than the sample has."""
    model = Positions(6)
    sizes: list[int] = []
    monkeypatch.setattr(model, "sizes", sizes)
    with pytest.raises(DynamicAxisError) as error:
        run_on_gpu(model, Axis("n", 1, 4, 8))
    assert error.value.axis == "n"
    assert "IndexError: index out of range" in error.value.got


def test_model_that_cannot_be_tried_on_the_cpu_is_compared_on_its_sample() -> None:
    """Every other input may end the CUDA context; a note says what is missing and why."""
    found, notes = run_on_gpu(Single(16), Axis("n", 1, 4, 8))
    assert list(found) == ["opt"]
    assert notes == (
        "no cases 'min', 'max', 'random': other inputs may end the process's CUDA context, and can't be tried on the "
        "CPU first (RuntimeError: there is one of me); pass real inputs as examples=[...]",
    )
    found, _ = run_on_gpu(Single(16), Axis("n", 1, 2, 8))
    assert list(found) == ["sample"]
    assert len(found["sample"].inputs[0]) == 4


def test_sample_outside_every_profile_cannot_stand_for_other_cases() -> None:
    """Then nothing may be compared, and the error says so."""
    with pytest.raises(ExportError) as error:
        run_on_gpu(Single(16), Axis("n", 1, 4, 8), [{"n": (1, 1, 2)}, {"n": (6, 6, 8)}])
    assert error.value.fix == "pass real inputs as examples=[...], or give a sample inside a profile"


def test_kind_of_a_case_is_the_corner_that_it_stands_for() -> None:
    """Cases of a fixed size stand for no corner; the precision's account looks for the one at opt."""
    fixed, _ = run(DOUBLE, torch.ones(2, 3))
    assert {name: case.kind for name, case in fixed.items()} == {"sample": "", "random": "random"}
    free, _ = run(DOUBLE, torch.ones(2, 3), {"x": {0: Axis("batch", 1, 2, 4)}})
    assert {"min": "min", "opt": "opt", "max": "max"}.items() <= {
        name: case.kind for name, case in free.items()
    }.items()
