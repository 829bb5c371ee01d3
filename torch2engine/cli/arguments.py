"""Arguments of the command line → models, samples, axes and sizes.

Enters: text such as `net.py:make`, `8x3x64x64`, `batch=1:8:32`. Leaves: what `deploy` and the other functions take, or
an InputError that shows the right form. Separate because every command reads the same arguments.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.constants import RANDOM_SEED
from torch2engine.core.errors import InputError
from torch2engine.core.pytree import Inputs, as_inputs, flatten
from torch2engine.core.spec import Axis
from torch2engine.core.wording import kind_of, quote

__all__ = [
    "AxisArgument",
    "make_dynamic_axes",
    "read_arrays",
    "read_axis",
    "read_file_axes",
    "read_model",
    "read_sample",
    "read_sizes",
]

_OBJECT = re.compile(r"(?P<file>.+):(?P<name>[A-Za-z_][\w.]*)")
_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_][\w.]*)=)?(?:(?P<dtype>[a-z]+\d*):)?(?P<sizes>\d+(?:[x,]\d+)*)")
_AXIS = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:@(?P<places>[^=]+))?=(?P<sizes>\d+(?::\d+){1,3})")
_SIZE = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<size>\d+)")
_RANDOM_DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8")


def read_model(text: str, seed: int = RANDOM_SEED) -> nn.Module:
    """Import the model that a text like `net.py:make` or `package.net:Net` names; call what makes one.

    The random generators of PyTorch, NumPy and Python are seeded before, as those of a new process. So a model that is
    not trained yet has the same weights in every command.

    Args:
        text: a module or a file, and in it an nn.Module, or a class or function that returns one without arguments.
        seed: of the generators.

    Raises:
        InputError: there is no such thing, or it gives no nn.Module.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    found = _find(text)
    model: object = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model '{text}'",
            got=kind_of(model),
            allowed="an nn.Module, or a function that returns one",
            fix="name a function without arguments, e.g. net.py:make",
        )
    return model


def read_sample(texts: Sequence[str]) -> Any:
    """Make the sample input.

    Args:
        texts: shapes (`8x3x64x64`, `x=8x3`, `float16:8x3`), one .npz file, or one `module:function`.

    Raises:
        InputError: none of these; or a shape for integers, whose values decide what the model does.
    """
    if not texts:
        raise InputError("--sample", got="nothing", allowed="a shape, an .npz file or module:function", fix=_example())
    if len(texts) == 1 and texts[0].endswith(".npz"):
        return _as_sample({name: torch.from_numpy(array) for name, array in read_arrays(texts[0]).items()})
    if len(texts) == 1 and not _SHAPE.fullmatch(texts[0]) and _OBJECT.fullmatch(texts[0]):
        found = _find(texts[0])
        return found() if callable(found) and not isinstance(found, torch.Tensor) else found
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for text in texts:
        tensor = _random_tensor(text, generator)
        name = text.partition("=")[0] if "=" in text else ""
        if name:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return Inputs(*args, **kwargs)


def read_arrays(path: str) -> dict[str, Any]:
    """Read the arrays of an .npz file by name.

    Raises:
        InputError: it is missing, or no .npz file of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"file '{path}'",
            got=quote(error),
            allowed="an .npz file with an array for each input",
            fix="write one with numpy.savez(path, x=array)",
        ) from error


@dataclass(frozen=True)
class AxisArgument:
    """One `--axis`.

    Args:
        axis: its name and range.
        places: (input, dimension) pairs; empty for the first dimension of every input.
    """

    axis: Axis
    places: tuple[tuple[str, int], ...]


def read_axis(text: str) -> AxisArgument:
    """Read `NAME[@INPUT.DIM,...]=MIN:OPT:MAX[:MULTIPLE]`; of two numbers the second is opt and max.

    >>> read_axis("batch=1:8:32").axis
    Axis(name='batch', min=1, opt=8, max=32, multiple_of=1)
    >>> read_axis("tokens@ids.1,mask.1=1:64").places
    (('ids', 1), ('mask', 1))

    Raises:
        InputError: another form.
    """
    match = _AXIS.fullmatch(text)
    places = [place.rpartition(".") for place in (match["places"] or "").split(",") if place] if match else []
    if match is None or any(not name or not position.isdigit() for name, _, position in places):
        raise InputError(
            "--axis",
            got=repr(text),
            allowed="NAME=MIN:OPT:MAX, or NAME@INPUT.DIM,INPUT.DIM=MIN:OPT:MAX",
            fix="e.g. --axis batch=1:8:32 --axis tokens@ids.1,mask.1=1:64:512",
        )
    smallest, opt, *rest = map(int, match["sizes"].split(":"))
    largest = rest[0] if rest else opt
    multiple_of = rest[1] if len(rest) > 1 else 1
    axis = Axis(match["name"], smallest, opt, largest, multiple_of)
    return AxisArgument(axis, tuple((name, int(position)) for name, _, position in places))


def read_file_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Read the `--axis` options for a file, which itself says where its axes are.

    Raises:
        InputError: another form, or places.
    """
    arguments = [read_axis(text) for text in texts]
    for argument in arguments:
        for name, position in argument.places:
            raise InputError(
                "--axis",
                got=f"places for axis '{argument.axis.name}'",
                allowed="NAME=MIN:OPT:MAX, since the file says where its axes are",
                fix=f"leave out @{name}.{position}",
            )
    return tuple(argument.axis for argument in arguments)


def make_dynamic_axes(arguments: Sequence[AxisArgument], model: nn.Module, sample: Any) -> dict[str, dict[int, Axis]]:
    """Make `deploy`'s dynamic_axes; an axis without places is the first dimension of every input."""
    axes: dict[str, dict[int, Axis]] = {}
    for argument in arguments:
        places = argument.places or tuple((name, 0) for name in _input_names(model, sample))
        for name, position in places:
            axes.setdefault(name, {})[position] = argument.axis
    return axes


def read_sizes(texts: Sequence[str]) -> dict[str, int]:
    """Read the `--size` options, such as `batch=8`.

    Raises:
        InputError: another form.
    """
    sizes: dict[str, int] = {}
    for text in texts:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise InputError("--size", got=repr(text), allowed="NAME=SIZE", fix="e.g. --size batch=8")
        sizes[match["name"]] = int(match["size"])
    return sizes


def _find(text: str) -> Any:
    """Import what `file.py:name` or `package.module:name` names."""
    match = _OBJECT.fullmatch(text)
    if match is None:
        raise InputError(
            f"'{text}'", got="no name in it", allowed="FILE.py:NAME or MODULE:NAME", fix="e.g. net.py:make"
        )
    module = _import(match["file"])
    found: Any = module
    for name in match["name"].split("."):
        if not hasattr(found, name):
            public = [each for each in vars(module) if not each.startswith("_")]
            raise InputError(
                f"'{match['file']}'",
                got=f"no '{match['name']}' in it",
                allowed="one of " + ", ".join(public[:20]) if public else "a name that it defines",
                fix="name one of these",
            )
        found = getattr(found, name)
    return found


def _import(name: str) -> ModuleType:
    """Import a module by its name, as Python finds it from here, or a file by its path."""
    folder = str(Path(name).parent.resolve()) if name.endswith(".py") else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0] and error.name != name:
                raise
            raise InputError(
                f"module '{name}'",
                got="no such module",
                allowed="one that Python can import from here",
                fix="give the path of a file instead, e.g. net.py:make",
            ) from error
    path = Path(name)
    if not path.is_file():
        raise InputError(f"file '{name}'", got="no such file", allowed="a Python file", fix="give its path from here")
    # A file may be called like a module that is loaded already.
    module_name = f"command_line_{path.stem}" if path.stem in sys.modules else path.stem
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def _random_tensor(text: str, generator: torch.Generator) -> torch.Tensor:
    match = _SHAPE.fullmatch(text)
    dtype = (match["dtype"] or "float32") if match else ""
    if match is None or dtype not in _RANDOM_DTYPES:
        raise InputError(
            "--sample",
            got=repr(text),
            allowed=f"a shape of {', '.join(_RANDOM_DTYPES)}; of other dtypes real values are needed",
            fix=_example(),
        )
    shape = [int(size) for size in re.split("[x,]", match["sizes"])]
    values = torch.rand(shape, generator=generator)
    return (values * 256).to(torch.uint8) if dtype == "uint8" else values.to(torch_dtype(dtype))


def _example() -> str:
    return "e.g. --sample 8x3x64x64, --sample inputs.npz or --sample net.py:make_sample"


def _as_sample(tensors: Mapping[str, torch.Tensor]) -> Any:
    """Arrays that numpy has named arr_0, arr_1, ... are positional, others are keywords."""
    if all(re.fullmatch(r"arr_\d+", name) for name in tensors):
        return tuple(tensors.values())
    return dict(tensors)


def _input_names(model: nn.Module, sample: Any) -> list[str]:
    """The names that the sample's tensors get, by forward's parameters."""
    inputs = as_inputs(sample)
    signature = inspect.signature(model.forward)
    try:
        arguments = signature.bind(*inputs.args, **inputs.kwargs).arguments
    except TypeError:
        return []  # deploy raises an error for these arguments
    names: list[str] = []
    for name, value in arguments.items():
        is_keywords = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        found = flatten(value, name).names
        names += [path.removeprefix(f"{name}.") for path in found] if is_keywords else found
    return names
