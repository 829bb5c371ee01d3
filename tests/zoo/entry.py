"""What one model of the zoo is: how it is made, its inputs at given sizes, and the axes that its users leave free.

Enters: nothing. Leaves: `ZooEntry`, the axes that most entries share, and the sizes to try. Apart from the lists
because every list builds on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from tests.zoo.statistics import settle

__all__ = [
    "BATCH",
    "LENGTH",
    "PIXELS",
    "AbsentModelError",
    "Sizes",
    "ZooEntry",
    "floats",
    "of_length",
    "pictures",
    "side",
    "tokens",
]

SEED = 0
SETTLING_BATCH = 4
Sizes = Mapping[str, int]

BATCH = t2e.Axis("batch", 1, 2, 4)
LENGTH = t2e.Axis("length", 4, 16, 32)
PIXELS = {"x": {0: BATCH}}
VOCABULARY = 500


class AbsentModelError(Exception):
    """The installed version of a library has no such model."""


@dataclass(frozen=True)
class ZooEntry:
    """A model with its inputs.

    Args:
        family: the group that it stands in, e.g. "timm".
        build: gives the model with its first weights.
        inputs: gives inputs by forward's names, for {axis: size}.
        axes: dynamic_axes, with an `Axis` for each.
        settles: whether normalisation layers take their statistics from a run. False where a run would change state.
        is_given_examples: whether real inputs of other sizes are given, since invented ones would not fit together.
    """

    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Sizes], dict[str, Any]]
    axes: Mapping[str, Mapping[int, t2e.Axis]]
    settles: bool = True
    is_given_examples: bool = False

    def make(self) -> nn.Module:
        """The model in inference mode, always with the same weights.

        Raises:
            AbsentModelError: the installed libraries lack it.
        """
        torch.manual_seed(SEED)
        model = self.build().eval()
        return settle(model, self.sample({**self.sizes("max"), "batch": SETTLING_BATCH})) if self.settles else model

    def sample(self, sizes: Sizes) -> dict[str, Any]:
        """Inputs at these sizes, always the same ones."""
        torch.manual_seed(SEED + 1)
        return self.inputs(sizes)

    def sizes(self, which: str) -> dict[str, int]:
        """{axis: size}.

        Args:
            which: "min", "opt", "max" or "between". The last is none of the three where the axis has a fourth size.
        """
        axes = {axis.name: axis for by_dimension in self.axes.values() for axis in by_dimension.values()}
        if which == "between":
            return {name: _size_between(axis) for name, axis in axes.items()}
        return {name: int(getattr(axis, which)) for name, axis in axes.items()}


def _size_between(axis: t2e.Axis) -> int:
    sizes = range(axis.min, int(axis.max or axis.min) + 1)
    inner = [size for size in sizes if size % axis.multiple_of == 0 and size not in (axis.min, axis.opt, axis.max)]
    return inner[-1] if inner else int(axis.opt or axis.min)


def side(name: str, smallest: int, largest: int, step: int) -> t2e.Axis:
    """The height or width of a picture."""
    return t2e.Axis(name, smallest, min(smallest + step, largest), largest, multiple_of=step)


def floats(*shape: int | str, name: str = "x") -> Callable[[Sizes], dict[str, torch.Tensor]]:
    """Normal numbers; a text in the shape is the name of an axis."""
    return lambda sizes: {name: torch.randn([sizes[size] if isinstance(size, str) else size for size in shape])}


def pictures(height: int | str, width: int | str | None = None) -> Callable[[Sizes], dict[str, torch.Tensor]]:
    """Colour pictures."""
    return floats("batch", 3, height, height if width is None else width)


def of_length(length: int, inputs: Callable[[Sizes], dict[str, Any]]) -> Callable[[Sizes], dict[str, Any]]:
    """Inputs of one length, for a model that has another graph for each: a Python loop runs over it."""
    return lambda sizes: inputs({**sizes, "length": length})


def tokens(sizes: Sizes, name: str = "input_ids", length: str = "length") -> dict[str, torch.Tensor]:
    """Texts with a mask, the last of which is shorter."""
    shape = (sizes["batch"], sizes[length])
    mask = torch.ones(shape, dtype=torch.long)
    mask[-1, shape[1] * 2 // 3 :] = 0
    return {name: torch.randint(10, VOCABULARY, shape), "attention_mask": mask}
