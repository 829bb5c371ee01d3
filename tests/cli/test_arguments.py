"""`torch2engine.cli.arguments`: words of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torch2engine.cli.arguments import make_dynamic_axes, read_axis, read_sample, read_sizes
from torch2engine.core.errors import InputError
from torch2engine.core.spec import Axis


class Masked(nn.Module):
    """Two inputs, one of them in a dict."""

    def forward(self, batch: dict[str, torch.Tensor], scale: torch.Tensor) -> torch.Tensor:
        return batch["x"] * scale


def described(sample: Any) -> tuple[Any, Any]:
    """Dtype and shape of every tensor of an `Inputs`."""
    args = [(value.dtype, tuple(value.shape)) for value in sample.args]
    return args, {name: (value.dtype, tuple(value.shape)) for name, value in sample.kwargs.items()}


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        (["8x3"], [(torch.float32, (8, 3))], {}),
        (["8,3", "float16:2"], [(torch.float32, (8, 3)), (torch.float16, (2,))], {}),
        (["uint8:8x3", "scale=8"], [(torch.uint8, (8, 3))], {"scale": (torch.float32, (8,))}),
    ],
)
def test_shapes_become_tensors(words: list[str], args: list[Any], kwargs: dict[str, Any]) -> None:
    """Positions, names and dtypes are those of the words."""
    assert described(read_sample(words)) == (args, kwargs)


def test_random_sample_is_the_same_at_every_run() -> None:
    """A check that is run twice sees the same input, and bytes use their whole range."""
    first, again = (read_sample(["uint8:64x64"]).args[0] for _ in range(2))
    assert torch.equal(first, again)
    assert (int(first.min()), int(first.max())) == (0, 255)


@pytest.mark.parametrize(("names", "kind"), [(("arr_0", "arr_1"), tuple), (("x", "mask"), dict)])
def test_arrays_are_positional_or_named_as_numpy_saved_them(names: tuple[str, str], kind: type, tmp_path: Path) -> None:
    """numpy.savez(path, a, b) and numpy.savez(path, x=a, mask=b) both mean what they say."""
    arrays = {name: np.full((2, index + 1), index) for index, name in enumerate(names)}
    np.savez(tmp_path / "sample.npz", **arrays)  # pyright: ignore[reportArgumentType]  # its stub forgets names
    sample = read_sample([str(tmp_path / "sample.npz")])
    assert isinstance(sample, kind)
    assert [tuple(value.shape) for value in (sample.values() if kind is dict else sample)] == [(2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("word", "axis", "places"),
    [
        ("batch=1:8:32", Axis("batch", 1, 8, 32), ()),
        ("batch=1:8", Axis("batch", 1, 8, 8), ()),
        ("height@x.2=32:64:128:32", Axis("height", 32, 64, 128, 32), (("x", 2),)),
        ("tokens@batch.ids.1,batch.mask.1=1:8:64", Axis("tokens", 1, 8, 64), (("batch.ids", 1), ("batch.mask", 1))),
    ],
)
def test_axis_word_is_an_axis_and_its_places(word: str, axis: Axis, places: tuple[tuple[str, int], ...]) -> None:
    """Range, step and places are read; an input's name may hold dots."""
    read = read_axis(word)
    assert (read.axis, read.places) == (axis, places)


def test_axis_without_places_is_the_first_dimension_of_every_input() -> None:
    """Inputs are named by forward's parameters, those inside a dict too."""
    words = [read_axis("batch=1:8:32"), read_axis("width@scale.1=1:8:16")]
    sample = ({"x": torch.rand(8, 8)}, torch.rand(8, 8))
    assert make_dynamic_axes(words, Masked(), sample) == {
        "batch.x": {0: words[0].axis},
        "scale": {0: words[0].axis, 1: words[1].axis},
    }


@pytest.mark.parametrize("word", ["batch", "batch=", "batch=1", "batch=a:b", "batch@x=1:8", "batch@.0=1:8", "1b=1:8"])
def test_other_axis_words_are_refused(word: str) -> None:
    """The error shows both forms."""
    with pytest.raises(InputError) as caught:
        read_axis(word)
    assert str(caught.value) == (
        f"--axis: got {word!r}; expected NAME=MIN:OPT:MAX, or NAME@INPUT.DIM,INPUT.DIM=MIN:OPT:MAX; "
        "e.g. --axis batch=1:8:32 --axis tokens@ids.1,mask.1=1:64:512"
    )


def test_sizes_are_read_by_name() -> None:
    """Several --size words make one mapping."""
    assert read_sizes(["batch=8", "tokens=16"]) == {"batch": 8, "tokens": 16}
