"""Names, dtypes, symbolic shapes and call structure as plain data.

Enters: facts found by `capture` or read from a manifest. Leaves: validated values that every other
folder shares. Separate, and without torch, so that serving and training refuse a wrong call with the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, cast

from torch2engine.core.dtypes import DTYPES, lossless_cast, lossless_sources
from torch2engine.core.errors import DtypeError, DynamicAxisError, ShapeError
from torch2engine.core.json_rules import (
    TEXT,
    ByName,
    Items,
    Object,
    OneField,
    Plain,
    integer,
    plain,
)
from torch2engine.core.live_parameter_data import LIVE_JSON, LiveParameter
from torch2engine.core.package import public
from torch2engine.core.preprocess import PREPROCESS_JSON, Preprocess
from torch2engine.core.signature_rules import check_signature, check_sizes
from torch2engine.core.size_expression import parse_size_expression
from torch2engine.core.structure import PARAMETER_JSON, TREE_JSON, Parameter, Tree

__all__ = [
    "PROFILE_JSON",
    "SIGNATURE_JSON",
    "TENSOR_JSON",
    "Axis",
    "ContainerRefill",
    "Dim",
    "Effect",
    "InputWrite",
    "Parameter",
    "Preprocess",
    "Profile",
    "Signature",
    "TensorSpec",
    "Tree",
    "size_of",
]

Dim: TypeAlias = "int | str"
Range: TypeAlias = "tuple[int, int, int]"


def size_of(dim: str, sizes: Mapping[str, Any]) -> Any:
    """The size of an input's dynamic dimension: that of its axis, or what follows from several.

    >>> size_of("past + new", {"past": 4, "new": 2})
    6
    """
    return sizes[dim] if dim.isidentifier() else parse_size_expression(dim).value(sizes)


@public
@dataclass(frozen=True)
class Axis:
    """A named dynamic axis.

    Axes of one name are one symbol: they have the same size in every input of a call.

    Args:
        name: an identifier, e.g. ``"batch"``.
        min: smallest size, at least 1.
        opt: the size that TensorRT tunes for; None means the sample's size. TensorRT-RTX hardly tunes for it, so give
            that size a profile of its own.
        max: largest size; None means the sample's size.
        multiple_of: every size must be a multiple of this; a min of 1 is raised to it.

    Raises:
        DynamicAxisError: the name is no identifier, or the numbers contradict each other.

    >>> batch = t2e.Axis("batch", min=1, opt=8, max=32)
    >>> time = t2e.Axis("time", max=512, multiple_of=8)
    >>> dynamic_axes = {"ids": {0: batch, 1: time}, "mask": {0: batch, 1: time}}
    >>> time.min  # the smallest multiple
    8
    """

    name: str
    min: int = 1
    opt: int | None = None
    max: int | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(cast("object", self.name), str) and self.name.isidentifier()):
            raise DynamicAxisError(
                "axis name",
                got=repr(self.name),
                allowed="an identifier",
                fix="use letters, digits and underscores, e.g. Axis('batch')",
            )
        subject = f"axis '{self.name}'"
        for what in ("min", "opt", "max", "multiple_of"):
            value = cast("object", getattr(self, what))
            optional = what in ("opt", "max")
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DynamicAxisError(
                    subject,
                    axis=self.name,
                    got=f"{what} = {value!r}",
                    allowed="an int of at least 1" + (" or None" if optional else ""),
                    fix="an engine can't answer empty axes",
                )
        if self.multiple_of > 1 and self.min == 1:
            object.__setattr__(self, "min", self.multiple_of)
        sizes = [size for size in (self.min, self.opt, self.max) if size is not None]
        if sizes != sorted(sizes):
            raise DynamicAxisError(
                subject,
                axis=self.name,
                got=f"min {self.min}, opt {self.opt}, max {self.max}",
                allowed="min <= opt <= max",
                fix=f"give sizes in that order, e.g. Axis({self.name!r}, {', '.join(map(str, sorted(sizes)))})",
            )
        for size in sizes:
            if size % self.multiple_of:
                raise DynamicAxisError(
                    subject,
                    axis=self.name,
                    got=f"the size {size}",
                    allowed=f"multiples of multiple_of={self.multiple_of} for min, opt and max",
                    fix="round them",
                )

    @property
    def resolved(self) -> bool:
        """True once opt and max are numbers."""
        return self.opt is not None and self.max is not None

    @property
    def range(self) -> Range:
        """(min, opt, max) of a resolved axis."""
        assert self.opt is not None and self.max is not None, "axis is not resolved"
        return self.min, self.opt, self.max

    def to_json(self) -> dict[str, Any]:
        """Make JSON values of it."""
        return AXIS_JSON.encode(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Axis:
        """Make it of what `to_json` gave."""
        return AXIS_JSON.decode(data)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output tensor.

    Args:
        name: unique among all inputs and outputs.
        dtype: as PyTorch spells it without the prefix, e.g. ``"float16"``.
        shape: an int per static dimension; an axis name per dynamic one, or an expression over axis names. Those of
            inputs are `SizeExpression`s, e.g. ``"past + new"``. Those of outputs are for people to read; the engine
            itself gives the sizes at a call.
        preprocess: what the graph computes from an input before the model gets it; None for nothing.
        live: the parameter or buffer that feeds the input; None for an input that a call gives.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    preprocess: Preprocess | None = None
    live: LiveParameter | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every axis name or expression replaced by its size (inputs only)."""
        return tuple(dim if isinstance(dim, int) else size_of(dim, sizes) for dim in self.shape)


@public
@dataclass(frozen=True)
class Profile:
    """An optimization profile: (min, opt, max) for every dynamic axis, by name.

    Raises:
        DynamicAxisError: a range is not three ints with 1 <= min <= opt <= max.

    >>> profile = t2e.Profile({"batch": (1, 8, 32)})
    >>> print(profile)
    batch 1..32 (opt 8)
    >>> engine.profiles == (profile,)
    True
    """

    ranges: Mapping[str, Range]

    def __post_init__(self) -> None:
        checked: dict[str, Range] = {}
        for name, sizes in self.ranges.items():
            if (
                not isinstance(cast("object", sizes), (tuple, list))
                or len(sizes) != 3
                or None in cast("Sequence[object]", sizes)
            ):
                raise DynamicAxisError(
                    f"profile of axis '{name}'",
                    axis=name,
                    got=repr(sizes),
                    allowed="three ints (min, opt, max)",
                    fix=f"e.g. {{{name!r}: (1, 8, 32)}}",
                )
            axis = Axis(name, *sizes)
            checked[name] = axis.range
        object.__setattr__(self, "ranges", checked)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.ranges.items())))

    def contains(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether every axis's size lies in this profile."""
        return all(low <= sizes[name] <= high for name, (low, _, high) in self.ranges.items())

    @cached_property
    def breadth(self) -> int:
        """The number of combinations of sizes in it, steps not counted."""
        return math.prod(high - low + 1 for low, _, high in self.ranges.values())

    def sizes(self, which: int) -> dict[str, int]:
        """Every axis's size at min (0), opt (1) or max (2)."""
        return {name: sizes[which] for name, sizes in self.ranges.items()}

    def __str__(self) -> str:
        return ", ".join(f"{name} {low}..{high} (opt {opt})" for name, (low, opt, high) in self.ranges.items())

    def to_json(self) -> dict[str, list[int]]:
        """Make JSON values of it."""
        return PROFILE_JSON.encode(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[int]]) -> Profile:
        """Make it of what `to_json` gave."""
        return PROFILE_JSON.decode(data)


@dataclass(frozen=True)
class InputWrite:
    """An input that the model writes into.

    Args:
        input: its name.
        output: the name of the output with its new value. It is one of the result's where the model returns the very
            tensor that it was given, and follows the result's outputs otherwise.
    """

    input: str
    output: str


@dataclass(frozen=True)
class ContainerRefill:
    """A list, dict or other container among the arguments that the model fills anew.

    Args:
        path: the parameter's name, and the keys below it.
        tree: the container's structure after the call.
        tensors: the names of its tensors then, which are inputs and outputs.
    """

    path: tuple[str | int, ...]
    tree: Tree
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """The place where a caller finds an output that is not in the result.

    Args:
        path: of a container among the arguments; empty for the inputs themselves.
        position: among the tensors there.
    """

    path: tuple[str | int, ...]
    position: int


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a call: tensors by name, axes, and the structure around them.

    Args:
        inputs, outputs: tensors in the order in which the trees are flattened. Live parameters are the last inputs.
        axes: the resolved dynamic axes.
        parameters: forward's parameters in order; their trees hold the inputs that a call gives.
        output: the result's structure.
        writes: the inputs that the model writes into.
        refills: the containers among the arguments that it fills anew. Outputs that are in no result come last.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    output: Tree = Tree("tensor")
    writes: tuple[InputWrite, ...] = ()
    refills: tuple[ContainerRefill, ...] = ()

    @property
    def effects(self) -> tuple[Effect, ...]:
        """The places of the outputs that follow those of the result, in their order."""
        inputs = {spec.name: index for index, spec in enumerate(self.inputs)}
        found = {name: Effect(one.path, index) for one in self.refills for index, name in enumerate(one.tensors)}
        found |= {write.output: Effect((), inputs[write.input]) for write in self.writes}
        return tuple(found[spec.name] for spec in self.outputs[self.output.leaves() :] if spec.name in found)

    @cached_property
    def call_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that a call gives."""
        return tuple(spec for spec in self.inputs if spec.live is None)

    @cached_property
    def live_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that live parameters feed."""
        return tuple(spec for spec in self.inputs if spec.live is not None)

    @property
    def live_parameters(self) -> tuple[LiveParameter, ...]:
        """The parameters and buffers that are inputs, in the inputs' order."""
        return tuple(spec.live for spec in self.inputs if spec.live is not None)

    def axis(self, name: str) -> Axis:
        """The axis of that name."""
        return next(axis for axis in self.axes if axis.name == name)

    @property
    def preprocess(self) -> tuple[Preprocess | None, ...]:
        """The preprocessing of each input; None where there is none."""
        return tuple(spec.preprocess for spec in self.inputs)

    def check_dtype(self, spec: TensorSpec, dtype: str, by: str = ".to({})") -> None:
        """Refuse a dtype that is neither the input's own nor cast to it without loss.

        Args:
            spec: the input.
            dtype: what came.
            by: what casts it, for the message.

        Raises:
            DtypeError: naming the input, what came, what is allowed and how to fix it.
        """
        if not lossless_cast(dtype, spec.dtype):
            lossless = lossless_sources(spec.dtype)
            also = f" (or {', '.join(lossless)}, cast without loss)" if lossless else ""
            raise DtypeError(
                f"input '{spec.name}'",
                name=spec.name,
                got=f"dtype {dtype}",
                allowed=f"{spec.dtype}{also}",
                fix="pass the image's bytes as they were decoded: the engine normalises them"
                if spec.preprocess is not None
                else f"cast it yourself with {by.format(spec.dtype)} if the loss is meant",
            )

    def resolve(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """Find every axis's size from the inputs' shapes.

        Args:
            shapes: one shape per input, in the order of `inputs`.

        Returns:
            axis name -> size.

        Raises:
            ShapeError: wrong rank, wrong static size, two sizes for one axis, a size that does not follow from its
                axes, or not a multiple of multiple_of.
        """
        sizes: dict[str, int] = {}
        has_expressions = False
        first: dict[str, str] = {}
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(spec.shape):
                raise self._shape_error(spec, shape, f"shape {list(shape)} of {len(shape)} dimensions")
            for position, (dim, size) in enumerate(zip(spec.shape, shape, strict=True)):
                if isinstance(dim, int):
                    if dim != size:
                        raise self._shape_error(
                            spec,
                            shape,
                            f"dimension {position} = {size}",
                            f"add {{{position}: 'name'}} to dynamic_axes",
                        )
                elif not dim.isidentifier():
                    has_expressions = True
                elif sizes.setdefault(dim, size) != size:
                    raise self._shape_error(spec, shape, f"{dim} = {size}, but {sizes[dim]} in input '{first[dim]}'")
                else:
                    first.setdefault(dim, spec.name)
        for axis in self.axes:
            if sizes.get(axis.name, 0) % axis.multiple_of:
                raise ShapeError(
                    f"input '{first[axis.name]}'",
                    name=first[axis.name],
                    got=f"{axis.name} = {sizes[axis.name]}",
                    allowed=f"a multiple of {axis.multiple_of}",
                    fix=f"pad axis '{axis.name}' to a multiple of {axis.multiple_of}",
                )
        if has_expressions:
            self._check_expressions(shapes, sizes)
        return sizes

    def _check_expressions(self, shapes: Sequence[Sequence[int]], sizes: Mapping[str, int]) -> None:
        """Refuse a size that does not follow from its axes."""
        for spec, shape in zip(self.inputs, shapes, strict=True):
            for position, (expected, size) in enumerate(zip(spec.sized(sizes), shape, strict=True)):
                if size != expected:
                    got = ", ".join(f"{name} = {value}" for name, value in sizes.items())
                    raise self._shape_error(
                        spec,
                        shape,
                        f"dimension {position} = {size}, but '{spec.shape[position]}' is {expected} with {got}",
                        f"pass {expected} there",
                    )

    def _shape_error(self, spec: TensorSpec, shape: Iterable[int], got: str, fix: str = "") -> ShapeError:
        dims = ", ".join(map(str, spec.shape))
        return ShapeError(
            f"input '{spec.name}'",
            name=spec.name,
            got=got,
            allowed=f"[{dims}]",
            fix=fix or f"pass a tensor of that shape, not {list(shape)}",
        )

    def to_json(self) -> dict[str, Any]:
        """Make JSON values of it."""
        return SIGNATURE_JSON.encode(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Make it of what `to_json` gave."""
        return SIGNATURE_JSON.decode(data)


# The JSON form of each class: one row a field. A new field is one row here and one field of the class above.


def _is_dtype(value: object) -> bool:
    return isinstance(value, str) and value in DTYPES


def _check_dim(value: object, where: str) -> None:
    """A dimension is a size, or the name of an axis or an expression over such names."""
    (TEXT if isinstance(value, str) else integer()).check(value, where)


AXIS_JSON = Object(
    Axis,
    {"name": TEXT, "min": integer(1), "opt": integer(1), "max": integer(1), "multiple_of": integer(1)},
    check_whole=check_sizes,
)
PROFILE_JSON = OneField(
    Profile,
    "ranges",
    ByName(Items(integer(1), lambda sizes: len(sizes) == 3 and sizes == sorted(sizes), "min <= opt <= max")),
)
TENSOR_JSON = Object(
    TensorSpec,
    {
        "name": TEXT,
        "dtype": plain(_is_dtype, "a dtype as PyTorch spells it, e.g. 'float32'"),
        "shape": Items(Plain(_check_dim)),
        "preprocess": PREPROCESS_JSON,
        "live": LIVE_JSON,
    },
    optional=("preprocess", "live"),
)
_WRITE_JSON = Object(InputWrite, {"input": TEXT, "output": TEXT})
_KEY = plain(lambda value: isinstance(value, (str, int)), "a string or an int")
_REFILL_JSON = Object(
    ContainerRefill,
    {"path": Items(_KEY, lambda keys: len(keys) > 0, "at least one key"), "tree": TREE_JSON, "tensors": Items(TEXT)},
)
SIGNATURE_JSON = Object(
    Signature,
    {
        "inputs": Items(TENSOR_JSON),
        "outputs": Items(TENSOR_JSON),
        "axes": Items(AXIS_JSON),
        "parameters": Items(PARAMETER_JSON),
        "output": TREE_JSON,
        "writes": Items(_WRITE_JSON),
        "refills": Items(_REFILL_JSON),
    },
    optional=("writes", "refills"),
    check_whole=check_signature,
)
