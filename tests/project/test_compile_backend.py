"""The benchmark of torch.compile's backend: it counts what is compiled, and tells too much from enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.compile_backend import MODELS, failures, figures_of
from benchmarks.compile_trial import (
    BATCH_SIZES,
    CompileCounts,
    CompileTrial,
    CountingBackend,
    ManyCompilationsError,
    compile_row_of,
)
from tests.zoo.entry import BATCH, ZooEntry, floats
from tests.zoo.models import EVERY


class Branches(nn.Module):
    """A batch above ten takes another way, so that PyTorch compiles once more."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x)
        return rows.exp() if x.shape[0] > 10 else rows.sin()


def entry_of(make: type[nn.Module]) -> ZooEntry:
    """A model as an entry of the zoo."""
    return ZooEntry("plain", make, floats("batch", 3), {"x": {0: BATCH}})


@pytest.fixture(scope="module")
def few() -> CompileCounts:
    """The counts of a branch with few sizes."""
    with torch.no_grad():
        return CompileTrial(entry_of(Branches), "cpu", sizes=(3, 5, 12, 15)).run()


def test_models_are_thirty_with_a_free_batch() -> None:
    """Each name is an entry of the zoo once, and its batch may vary."""
    assert len(set(MODELS)) == len(MODELS) == 30
    axes = {name: {axis.name for dims in EVERY[name].axes.values() for axis in dims.values()} for name in MODELS}
    assert [name for name, names in axes.items() if "batch" not in names] == []
    assert sorted(BATCH_SIZES) == list(range(1, 21))


def test_twenty_batch_sizes_take_few_compilations() -> None:
    """One graph for the first size, one for all others, one for a batch of one; each has few engines."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    row = compile_row_of(entry_of(Small), "cpu", lambda row: None)
    assert (row["outcome"], row["message"]) == ("passed", "")
    counts = row["counts"]
    assert (counts["graphs"], counts["recompiles"], counts["eager_recompiles"]) == (3, 2, 2)
    assert (counts["parts"], counts["parts_in_engines"], counts["late"]) == (3, 1, 0)
    # 8 alone, 2 to 32, 1 alone
    assert [next(iter(profile.values()), []) for profile in counts["profiles"]] == [[], [2, 20, 32], []]


def test_planted_recompilation_is_counted(few: CompileCounts) -> None:
    """A branch on the batch takes one graph more, with this backend and with the one that does nothing."""
    assert (few.graphs, few.recompiles, few.eager_recompiles) == (3, 2, 2)
    few.check()


def test_code_that_is_compiled_again_counts_and_other_code_does_not() -> None:
    """Two functions are two graphs; a value that torch.compile guards takes one more of the same function."""
    counting = CountingBackend(lambda graph_module, _: graph_module.forward)

    def scaled(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * len(name) + 1

    torch._dynamo.reset()
    x = torch.ones(2)
    for function in (torch.compile(scaled, backend=counting), torch.compile(torch.nn.Tanh(), backend=counting)):
        arguments: tuple[Any, ...] = ("a",) if counting.graphs == 0 else ()
        function(x, *arguments)
    assert (counting.graphs, counting.recompiles) == (2, 0)
    torch.compile(scaled, backend=counting)(x, "long")
    assert (counting.graphs, counting.recompiles) == (3, 1)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recompiles": 3}, "recompilations: got 3; expected at most 2"),
        ({"engines": 99}, r"engines: got 99; expected at most \d+"),
        ({"late": 1}, "compilations in a second pass: got 1; expected at most 0"),
    ],
)
def test_more_compilations_than_the_sizes_need_are_refused(
    change: dict[str, int], message: str, few: CompileCounts
) -> None:
    """Each count has its bound."""
    with pytest.raises(ManyCompilationsError, match=message):
        replace(few, **change).check()


def test_figures_tell_wrong_answers_from_many_compilations() -> None:
    """A model that compiles too often still answers right; one that is absent counts nowhere."""
    counts = {"recompiles": 4, "eager_recompiles": 2, "engines": 6, "late": 1, "parts_in_engines": 0, "engine_share": 0}
    rows: dict[str, dict[str, Any]] = {
        "net": {"outcome": "recompiled", "error": "ManyCompilationsError", "message": "m", "counts": counts},
        "off": {"outcome": "wrong", "error": "ParityError", "message": "far"},
        "gone": {"outcome": "absent", "error": "", "message": ""},
    }
    figures = figures_of(rows, waiting=2)
    assert (figures["compile.models"], figures["compile.equal_share"], figures["compile.absent"]) == (2, 0.5, 1)
    assert (figures["compile.worst_recompiles"], figures["compile.worst_recompiles_beyond_eager"]) == (4, 2)
    assert (figures["compile.net.engines"], figures["compile.without_engine"], figures["compile.waiting"]) == (6, 1, 2)
    assert failures(rows) == ["net: recompiled ManyCompilationsError m", "off: wrong ParityError far"]
