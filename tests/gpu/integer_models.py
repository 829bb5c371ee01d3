"""Deploys models whose integers depend on sizes or on each other, and looks at the CUDA context after each.

Enters: a device, as the only argument. Leaves: one line of JSON with what became of each model. A program of its own
because an index out of range on a GPU ends the context of its process for good.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import torch2engine as t2e


class Model(nn.Module):
    """A function of the inputs and of a table of 16 rows, which can be trained."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 4))
        self.function = function

    def forward(self, x: torch.Tensor, i: torch.Tensor | None = None) -> torch.Tensor:
        return self.function(self.table, x) if i is None else self.function(self.table, x, i)


@dataclass(frozen=True)
class Kind:
    """One way in which integers depend on something.

    Args:
        function: of the table and the inputs.
        sample: the inputs.
        axes: dynamic_axes.
        examples: real inputs at other sizes.
        fails: whether the model itself fails at a size that the axes promise.
    """

    function: Callable[..., torch.Tensor]
    sample: tuple[torch.Tensor, ...]
    axes: dict[str, Any]
    examples: list[Any] | None = None
    fails: bool = False


def ints(*values: Any) -> torch.Tensor:
    return torch.tensor(values)


def floats(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


def arange(like: torch.Tensor, size: int) -> torch.Tensor:
    return torch.arange(size, device=like.device)


def attend(table: torch.Tensor, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The mean over the entries that lengths name, each with the row of its place."""
    shown = arange(x, x.shape[1])[None, :] < lengths[:, None]
    return ((x + table[arange(x, x.shape[1])]) * shown[..., None]).sum(1) / lengths[:, None]


N = t2e.Axis("n", 2, 6, 12)
BATCH = t2e.Axis("batch", 1, 2, 4)
BOTH = {"x": {0: N}, "i": {0: N}}

KINDS = {
    "last of lengths": Kind(
        lambda t, x, i: x[arange(x, x.shape[0]), i - 1] * t[0], (floats(2, 6, 4), ints(6, 4)), {"x": {1: N}}
    ),
    "mask of lengths": Kind(attend, (floats(2, 6, 4), ints(6, 3)), {"x": {0: BATCH, 1: N}, "i": {0: BATCH}}),
    "gather": Kind(lambda t, x, i: x.gather(1, i) * t[0, 0], (floats(2, 6), ints([5, 0, 2], [1, 3, 4])), {"x": {1: N}}),
    "embedding": Kind(
        lambda t, x, i: F.embedding(x, t) * i[..., None],
        (ints([1, 4, 15, 3], [2, 9, 0, 1]), ints([1, 1, 1, 1], [1, 1, 0, 0])),
        {name: {0: BATCH, 1: t2e.Axis("n", 1, 4, 8)} for name in "xi"},
    ),
    "scatter": Kind(
        lambda t, x, i: torch.zeros_like(x).scatter(0, i[:, None].expand_as(x), x * t[0]),
        (floats(6, 4), ints(5, 3, 1, 0, 2, 4)),
        BOTH,
    ),
    "one-hot": Kind(lambda t, x, i: F.one_hot(i, 16) * (x @ t.T), (floats(6, 4), ints(1, 4, 15, 3, 2, 9)), BOTH),
    "edges of a graph": Kind(
        lambda t, x, i: torch.zeros_like(x).index_add(0, i[1], x[i[0]] * t[0]),
        (floats(6, 4), ints([0, 1, 2, 5], [3, 4, 5, 0])),
        {"x": {0: N}, "i": {1: t2e.Axis("edges", 1, 4, 8)}},
    ),
    "places in a cache": Kind(
        lambda t, x, i: t.index_copy(0, i, x),
        (floats(4, 4), ints(4, 5, 6, 7)),
        {name: {0: t2e.Axis("n", 1, 4, 8)} for name in "xi"},
    ),
    "position ids": Kind(
        lambda t, x, i: x + t[i],
        (floats(1, 6, 4), ints([0, 1, 2, 3, 4, 5])),
        {"x": {1: N}, "i": {1: N}},
    ),
    "offsets of bags": Kind(
        lambda t, x, i: F.embedding_bag(x, t, i, mode="sum"),
        (ints(1, 4, 7, 3, 2, 9), ints(0, 3)),
        {"x": {0: N}},
    ),
    "class labels": Kind(
        lambda t, x, i: F.nll_loss((x @ t.T).log_softmax(1), i, reduction="none"),
        (floats(6, 4), ints(1, 4, 15, 3, 2, 9)),
        BOTH,
    ),
    "token types": Kind(lambda t, x, i: x + t[:2][i], (floats(6, 4), ints(0, 0, 0, 1, 1, 1)), BOTH),
    "index_select": Kind(lambda t, x, i: (x * t[0]).index_select(0, i), (floats(6, 4), ints(5, 0, 5)), {"x": {0: N}}),
    "float as index": Kind(lambda t, x: t[(x * 15).long()], (floats(6),), {"x": {0: N}}),
    "places of a table": Kind(lambda t, x: x + t[arange(x, x.shape[0])], (floats(6, 4),), {"x": {0: N}}),
    "one place": Kind(lambda t, x, i: x[i] * t[0], (floats(6, 4), torch.tensor(5)), {"x": {0: N}}),
    "sums that fit": Kind(
        lambda t, x, i: x[i.cumsum(0) - 1] * t[0],
        (floats(6, 4), ints(1, 2, 3)),
        {"x": {0: N}},
        examples=[(floats(3, 4), ints(1, 1, 1)), (floats(12, 4), ints(5, 3, 4))],
    ),
    "table too short": Kind(
        lambda t, x: x + t[arange(x, x.shape[0])], (floats(6, 4),), {"x": {0: t2e.Axis("n", 2, 6, 40)}}, fails=True
    ),
    "ids of a short table": Kind(
        lambda t, x, i: x + t[arange(x, x.shape[0])] + t[i],
        (floats(6, 4), ints(1, 4, 15, 3, 2, 9)),
        {name: {0: t2e.Axis("n", 2, 6, 40)} for name in "xi"},
        fails=True,
    ),
}


@dataclass
class Outcome:
    """What became of one model.

    Args:
        deployed: whether deploy() gave a module.
        error: the class and text of its error.
        alive: whether the CUDA context works afterwards.
        trained: whether a step of training changed the model.
        notes: of the module's report.
    """

    deployed: bool = False
    error: str = ""
    alive: bool = False
    trained: bool = False
    notes: list[str] = field(default_factory=list[str])


def outcome_of(kind: Kind, device: str, runtime: str) -> Outcome:
    """Deploy a model and use it afterwards."""
    torch.manual_seed(0)
    model = Model(kind.function).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sample = tuple(leaf.to(device) for leaf in kind.sample)
    outcome = Outcome()
    try:
        module = t2e.deploy(model, sample, kind.axes, examples=kind.examples, runtime=runtime, cache=False)
        outcome.deployed = True
        assert module.report is not None
        outcome.notes = list(module.report.notes)
    except t2e.Torch2EngineError as error:
        outcome.error = f"{type(error).__name__}: {error}"
    try:
        before = model.table.detach().clone()
        model(*sample).float().sum().backward()
        optimizer.step()
        outcome.trained = bool((model.table != before).any())
        outcome.alive = torch.ones(3, device=device).sum().item() == 3
    except RuntimeError as error:
        outcome.error += f" | afterwards {error}"
    return outcome


def main() -> None:
    """Deploy all kinds, and print the outcomes."""
    warnings.simplefilter("ignore")
    device, runtime = sys.argv[1:]
    outcomes = {name: vars(outcome_of(kind, device, runtime)) for name, kind in KINDS.items()}
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main()
