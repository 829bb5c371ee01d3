"""Invented integers and masks are plausible, so that a right model is not refused for inputs that nobody would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.models import captured
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis

N = Axis("n", 2, 6, 12)
BATCH = Axis("batch", 1, 2, 4)
TABLE = torch.arange(48.0).reshape(16, 3)


class Calling(nn.Module):
    """Calls a function of at most two inputs."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, i: torch.Tensor | None = None) -> torch.Tensor:
        return self.function(x) if i is None else self.function(x, i)


class Attention(nn.Module):
    """Self-attention in which True hides an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, key_padding_mask=i)[0]


def cases_of(model: nn.Module, sample: Any, axes: Any) -> tuple[dict[str, ParityCase], tuple[str, ...]]:
    """The cases by name, and the notes."""
    call = captured(model, sample, axes)
    with undisturbed(model):
        found, notes = make_parity_cases(call)
    return {case.name: case for case in found}, notes


def integers(function: Callable[..., torch.Tensor], sample: Any, axes: Any) -> dict[str, Any]:
    """The second input of every case; there is no note."""
    found, notes = cases_of(Calling(function), sample, axes)
    assert notes == ()
    assert {"min", "random"} <= set(found)
    return {name: case.inputs[-1].tolist() for name, case in found.items()}


def ints(*values: Any) -> torch.Tensor:
    return torch.tensor(values)


def write_rows(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Write each row to its place; two rows of one place have no right answer."""
    assert len(places.unique()) == len(places)
    return torch.zeros(16, 3).index_copy(0, places, x)


def last_of(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    assert bool((lengths >= 1).all())
    return x[torch.arange(x.shape[0]), lengths - 1]


# Each is right for every input that means what the sample means, and fails for others.
COUPLED: dict[str, tuple[Callable[..., torch.Tensor], Any, Any]] = {
    "lengths": (last_of, (torch.randn(2, 6, 3), ints(6, 4)), {"x": {1: N}}),
    "lengths of a batch": (
        last_of,
        (torch.randn(2, 6, 3), ints(5, 4)),
        {"x": {0: BATCH, 1: Axis("n", 1, 6, 12)}, "i": {0: BATCH}},
    ),
    "gather": (lambda x, i: x.gather(1, i), (torch.randn(2, 6), ints([5, 0, 2], [1, 3, 4])), {"x": {1: N}}),
    "edges of a graph": (
        lambda x, e: torch.zeros_like(x).index_add(0, e[1], x[e[0]]),
        (torch.randn(6, 3), ints([0, 1, 2, 5], [3, 4, 5, 0])),
        {"x": {0: N}, "i": {1: Axis("edges", 1, 4, 8)}},
    ),
    "permutation": (write_rows, (torch.randn(6, 3), ints(5, 3, 1, 0, 2, 4)), {"x": {0: N}, "i": {0: N}}),
    "positions": (
        lambda x, i: x + TABLE[i],
        (torch.randn(1, 6, 3), ints([0, 1, 2, 3, 4, 5])),
        {"x": {1: N}, "i": {1: N}},
    ),
    "positions of a batch": (
        lambda x, i: x + TABLE[i],
        (torch.randn(2, 6, 3), ints([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])),
        {"x": {0: BATCH, 1: N}, "i": {0: BATCH, 1: N}},
    ),
    "places in a cache": (
        write_rows,
        (torch.randn(4, 3), ints(4, 5, 6, 7)),
        {name: {0: Axis("n", 1, 4, 8)} for name in "xi"},
    ),
    "one place in a cache": (
        write_rows,
        (torch.randn(1, 3), ints(5)),
        {name: {0: Axis("n", 1, 1, 8)} for name in "xi"},
    ),
    "offsets": (lambda x, i: F.embedding_bag(x, TABLE, i), (ints(1, 4, 7, 3, 2, 9), ints(0, 3)), {"x": {0: N}}),
    "labels": (
        lambda x, i: F.one_hot(i, 10) * x[:, None],
        (torch.randn(6), ints(1, 4, 7, 3, 2, 9)),
        {"x": {0: N}, "i": {0: N}},
    ),
    "token types": (
        lambda x, i: x + TABLE[:2][i],
        (torch.randn(6, 3), ints(0, 0, 0, 1, 1, 1)),
        {"x": {0: N}, "i": {0: N}},
    ),
    "a place": (lambda x, i: x[i], (torch.randn(6, 3), torch.tensor(5)), {"x": {0: N}}),
}


@pytest.mark.parametrize(("function", "sample", "axes"), COUPLED.values(), ids=COUPLED)
def test_integers_fit_the_other_inputs_at_every_size(function: Callable[..., Any], sample: Any, axes: Any) -> None:
    """A model that is right at all sizes has all four cases, and no note speaks of its integers."""
    found = integers(function, sample, axes)
    assert "random" in found


def test_counts_and_indices_are_cut_to_the_axis_that_bounds_them() -> None:
    """A largest value of the axis's size is a count, one less an index; what has no zero keeps none."""
    counts = integers(last_of, (torch.randn(2, 6, 3), ints(6, 4)), {"x": {1: N}})
    assert counts["min"] == [2, 1]
    indices = integers(lambda x, i: x[i], (torch.randn(6, 3), ints(5, 0, 5)), {"x": {0: N}})
    assert indices["min"] == [1, 0, 1]
    assert max(indices["random"]) <= 5


def test_distinct_integers_stay_distinct() -> None:
    """Positions go on where an axis grows, and a permutation that is cut becomes one of fewer."""
    found = integers(*COUPLED["permutation"])
    assert found["min"] == [1, 0]
    assert found["max"] == [5, 3, 1, 0, 2, 4, 11, 9, 7, 6, 8, 10]
    positions = integers(*COUPLED["positions of a batch"])
    assert positions["max"] == [list(range(12))] * 4
    function, (x, _), axes = COUPLED["positions of a batch"]
    later = integers(function, (x, ints([4, 5, 6, 7, 8, 9], [4, 5, 6, 7, 8, 9])), axes)
    assert later["max"] == [list(range(4, 16))] * 4
    assert sorted(found["random"]) == list(range(7))
    assert found["random"] != [5, 3, 1, 0, 2, 4, 6]


def test_places_of_a_scatter_are_distinct_in_every_case() -> None:
    """PyTorch leaves open which of two rows it writes to one place; the model itself refuses neither."""
    axes = {"x": {0: N}, "i": {0: N}}

    def scatter(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x).scatter(0, i[:, None].expand_as(x), x)

    def write_into_table(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return TABLE.index_copy(0, i, x)

    for function, sample in ((scatter, ints(5, 3, 1, 0, 2, 4)), (write_into_table, ints(3, 15, 9, 0, 7, 1))):
        found = integers(function, (torch.randn(6, 3), sample), axes)
        assert {"min", "max", "random"} <= set(found)
        assert all(len(set(places)) == len(places) for places in found.values()), found


def test_offsets_stay_sorted_from_their_least_one() -> None:
    """Random bags begin at the first word."""
    words = torch.arange(12) % 10
    found = integers(lambda x, i: F.embedding_bag(x, TABLE, i), (words, ints(0, 3, 3, 7)), {"x": {0: Axis("n", 8, 12)}})
    assert found["random"][0] == 0
    assert found["random"] == sorted(found["random"])


def test_ids_that_happen_to_be_distinct_stay_in_the_vocabulary() -> None:
    """Going on beyond the largest is tried, and given up where the model refuses it."""
    found = integers(lambda x, i: TABLE[:10][i] * x, (torch.ones(2, 1), ints(8, 9)), {n: {0: N} for n in "xi"})
    assert found["max"] == [8, 9] * 6


def test_integers_that_the_model_refuses_become_simpler() -> None:
    """Any integers may be coupled in ways that no axis shows; then the least or 0 is taken, and a note says so."""

    def row(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return x[i - 90]  # of 8 rows at most

    found, notes = cases_of(Calling(row), (torch.randn(6, 3), ints(90, 95, 93)), {"x": {0: Axis("n", 1, 6, 6)}})
    assert found["min"].inputs[1].tolist() == [90, 90, 90]
    assert notes == (
        "case 'min': of the integers in 'i' all are the sample's least one, since the model refuses others",
        "case 'random': of the integers in 'i' all are the sample's least one, since the model refuses others",
    )


PADDING = {
    "start": [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
    "start of one": [[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]],
    "most": [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]],
    "end": [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("rows", PADDING.values(), ids=PADDING)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=["bool", "added"])
def test_mask_that_is_cut_hides_no_row_as_a_whole(rows: list[list[int]], dtype: torch.dtype) -> None:
    """Attention to nothing is NaN in PyTorch, so a mask keeps an entry of every row that had one."""
    mask = torch.tensor(rows).bool()
    if dtype == torch.float32:
        mask = torch.zeros(2, 6).masked_fill(mask, -torch.inf)
    axes = {name: {1: Axis("n", 1, 6, 12)} for name in "xi"}
    found, notes = cases_of(Attention(), (torch.randn(2, 6, 8), mask), axes)
    assert notes == ()
    assert list(found) == ["min", "opt", "max", "random"]
    assert all(bool(output.isfinite().all()) for case in found.values() for output in case.outputs.values())


def test_cut_mask_keeps_the_sense_of_the_sample() -> None:
    """In a mask of 0 and 1 the value of whole rows shows: it is the one that a hidden row gets at its end."""
    mask = ints([0, 0, 0, 1], [1, 1, 1, 1])
    axes = {name: {1: Axis("n", 1, 4, 4)} for name in "xi"}
    found = integers(lambda x, i: x * i, (torch.randn(2, 4), mask), axes)
    assert found["min"] == [[1], [1]]
    causal = torch.ones(4, 4).tril().bool()
    axes = {"x": {0: Axis("n", 2, 4, 4)}, "i": {0: Axis("n", 2, 4, 4), 1: Axis("n", 2, 4, 4)}}
    found = integers(lambda x, i: x[:, :1] * i, (torch.randn(4, 4), causal), axes)
    assert found["min"] == [[True, False], [True, True]]


def test_cases_name_the_inputs_that_were_guessed() -> None:
    """The sample itself is no guess, and neither are floats."""
    found, _ = cases_of(Calling(last_of), (torch.randn(2, 6, 3), ints(6, 4)), {"x": {1: N}})
    assert {name: case.guessed for name, case in found.items()} == {
        "min": ("i",),
        "opt": (),
        "max": ("i",),
        "random": ("i",),
    }


def test_failing_case_of_made_up_integers_says_so() -> None:
    """The model may be right: the error says that the case's own values may be at fault."""

    def even(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_exporting() and int(i.sum()) != 2 * x.shape[0]:
            raise ValueError("lengths do not add up")
        return x * 2

    with pytest.raises(DynamicAxisError) as error:
        cases_of(Calling(even), (torch.randn(6, 3), ints(5, 7)), {"x": {0: N}})
    assert error.value.got.endswith("ValueError: lengths do not add up")
    assert error.value.fix == (
        "pass real inputs as examples=[...], since the values of 'i' in this case were made up; if these fail too, "
        "narrow the Axis, or correct the line"
    )
