"""`Preprocess`: the step from bytes to a model's input, as data.

Enters: a user's mean, std, scale and layout of images. Leaves: validated numbers, and one arithmetic for PyTorch's
answers and the ONNX graph alike. Separate from `spec` because it is a computation, described as data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from torch2engine.core.errors import DtypeError, InputError, ShapeError
from torch2engine.core.json_rules import Object, Plain, field_error
from torch2engine.core.package import public
from torch2engine.core.wording import did_you_mean, kind_of

__all__ = ["ORIGIN", "PREPROCESS_JSON", "Preprocess", "by_input"]

ORIGIN = "(preprocess)"  # stands for a module's path in the ONNX graph; no module can have this name

LAYOUTS = ("NHWC", "NCHW")
_DIMENSIONS = {"N": "batch", "H": "height", "W": "width", "C": "channels"}


@public
@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The step from images of bytes to a model's input: ``(x * scale - mean) / std``, in the order NCHW.

    It is computed in float32, as one product and one sum, with ``scale / std`` and ``-mean / std``. This differs from
    the formula by float32's rounding alone. The result is cast to the dtype of the model's first floating parameter.

    Args:
        mean, std: in units of ``x * scale``; one number, or one for each channel.
        scale: of a byte, e.g. ``1 / 255``.
        layout: of the bytes, "NHWC" or "NCHW"; the model gets (batch, channels, height, width).

    Raises:
        InputError: a number that is not finite, a std or scale that is not positive, or an unknown layout. Different
            numbers of means and stds, or a mean that no byte times `scale` reaches.

    >>> preprocess = t2e.Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    >>> pixels = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    >>> t2e.export(model, pixels, preprocess=preprocess).signature.inputs[0].dtype
    'uint8'
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    scale: float = 1 / 255
    layout: str = "NHWC"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            allowed = "one of " + ", ".join(map(repr, LAYOUTS))
            fix = "say where the images have their channels; a decoder gives 'NHWC'"
            raise InputError("Preprocess.layout", got=repr(self.layout), allowed=allowed, fix=fix)
        # Frozen, so hashable too: lists, arrays and tensors become tuples.
        object.__setattr__(self, "mean", _one_or_several("mean", self.mean))
        object.__setattr__(self, "std", _one_or_several("std", self.std))
        object.__setattr__(self, "scale", _scale_factor(self.scale))
        lengths = [len(value) for value in (self.mean, self.std) if isinstance(value, tuple)]
        if len(set(lengths)) > 1:
            raise InputError(
                "Preprocess",
                got=f"{lengths[0]} means and {lengths[1]} stds",
                allowed="one number for all channels, or one for each",
                fix="give as many of both as the images have channels",
            )
        largest = max(map(abs, _per_channel(self.mean, 1)))
        if largest > 255 * self.scale * (1 + 1e-6):  # no comparison finds this mistake, since both sides compute it
            raise InputError(
                "Preprocess.mean",
                got=f"{largest:g}, while x * scale is at most {255 * self.scale:g}",
                allowed="a mean in units of x * scale",
                fix="pass scale=1 for a mean and std of bytes",
            )

    @property
    def channels(self) -> int | None:
        """The number of channels that mean and std are for; None if for any."""
        return next((len(value) for value in (self.mean, self.std) if isinstance(value, tuple)), None)

    def __call__(self, images: Any) -> Any:
        """Compute the model's input from images; only the cast to the model's dtype is left.

        Args:
            images: a torch.Tensor, (batch, height, width, channels) uint8, or as `layout` says; only read.

        Returns:
            a new (batch, channels, height, width) float32 tensor, contiguous, on the images' device.
        """
        # The cast comes first: TensorRT allows nothing else behind an input of uint8 (10.x, RTX 1.6).
        x = images.float()
        if self.layout == "NHWC":
            x = x.permute(0, 3, 1, 2)
        factors, shifts = self._affine()
        sides = (-1, 1, 1)
        x = x * x.new_tensor(factors).reshape(sides)
        return (x + x.new_tensor(shifts).reshape(sides) if any(shifts) else x).contiguous()

    def _affine(self) -> tuple[list[float], list[float]]:
        """The factor of every channel, and the number added to every channel."""
        count = self.channels or 1
        means = _per_channel(self.mean, count)
        stds = _per_channel(self.std, count)
        return [self.scale / std for std in stds], [-mean / std for mean, std in zip(means, stds, strict=True)]

    def check(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        """Refuse a sample that is no batch of such images.

        Args:
            name: the input's.
            dtype: as PyTorch spells it.
            shape: of the sample.

        Raises:
            DtypeError, ShapeError: naming the input, what came and what is allowed.
        """
        subject = f"input '{name}'"
        order = ", ".join(_DIMENSIONS[letter] for letter in self.layout)
        if dtype != "uint8":
            raise DtypeError(
                subject,
                name=name,
                got=f"dtype {dtype}",
                allowed="uint8, since preprocess= takes bytes",
                fix=f"pass the image's bytes, ({order})",
            )
        if len(shape) != len(self.layout):
            raise ShapeError(
                subject,
                name=name,
                got=f"shape {list(shape)} of {len(shape)} dimensions",
                allowed=f"{self.layout}, ({order}), which Preprocess takes",
                fix=f"unsqueeze(0) adds a batch, unsqueeze({self.layout.index('C') - 4}) channels",
            )
        channels = shape[self.layout.index("C")]
        if self.channels not in (None, channels):
            other = next(layout for layout in LAYOUTS if layout != self.layout)
            is_swapped = shape[other.index("C")] == self.channels
            raise ShapeError(
                subject,
                name=name,
                got=f"shape {list(shape)} of {channels} channels in the order {self.layout}",
                allowed=f"{self.channels} channels, one for each number of mean and std",
                fix=f"pass layout={other!r}" if is_swapped else "give as many numbers as there are channels, or one",
            )

    def to_json(self) -> dict[str, Any]:
        """Make JSON values of the step."""
        return PREPROCESS_JSON.encode(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocess:
        """Make the step from the result of `to_json`."""
        return PREPROCESS_JSON.decode(data)


def _per_channel(value: float | Sequence[float], count: int) -> Sequence[float]:
    """The numbers of the channels; one number stands for `count` channels."""
    return (value,) * count if isinstance(value, (int, float)) else value


def _encode_numbers(value: float | tuple[float, ...]) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value


def _check_nothing(value: object, where: str) -> None:
    """Leave the check to `_check_preprocess`, since `Preprocess` checks its own fields."""


def _check_preprocess(members: dict[str, Any], where: str) -> None:
    try:
        Preprocess(**members)
    except InputError as error:
        raise field_error(members, where, f"what Preprocess takes ({error})") from None


_NUMBERS = Plain(_check_nothing, _encode_numbers)
_UNCHECKED = Plain(_check_nothing)
PREPROCESS_JSON = Object(
    Preprocess,
    {"mean": _NUMBERS, "std": _NUMBERS, "scale": _UNCHECKED, "layout": _UNCHECKED},
    check_whole=_check_preprocess,
)

# bool is an int, a string holds characters, sets have no order, and the keys of a mapping are no numbers.
_NO_NUMBERS = (bool, str, bytes, set, frozenset, Mapping)


def _one_or_several(name: str, value: object) -> float | tuple[float, ...]:
    """Read the mean or std: one finite number, or one for each channel as any iterable.

    Raises:
        InputError: something else.
    """
    items = _as_tuple(value)
    numbers = _as_floats((value,) if items is None else items)
    lowest = 0.0 if name == "std" else -math.inf
    if not numbers or not all(math.isfinite(number) and number > lowest for number in numbers):
        one = "a finite number above 0" if name == "std" else "a finite number"
        allowed = f"{one}, or one for each channel"
        raise InputError(
            f"Preprocess.{name}", got=repr(value), allowed=allowed, fix="pass a float, or a list of floats"
        )
    return numbers[0] if items is None else numbers


def _scale_factor(value: object) -> float:
    """Read the scale: one finite number above 0.

    Raises:
        InputError: something else.
    """
    numbers = _as_floats((value,))
    if not numbers or not math.isfinite(numbers[0]) or numbers[0] <= 0:
        fix = "pass 1 / 255 for floats of 0 to 1, or 1 for bytes"
        raise InputError("Preprocess.scale", got=repr(value), allowed="a finite number above 0", fix=fix)
    return numbers[0]


def _as_tuple(value: Any) -> tuple[Any, ...] | None:
    """The items of an iterable, e.g. a list, array or tensor; None if it is a single value."""
    try:
        return None if isinstance(value, _NO_NUMBERS) else tuple(value)
    except TypeError:
        return None


def _as_floats(values: tuple[Any, ...]) -> tuple[float, ...]:
    """The values as floats; () if one of them is no number."""
    try:
        return () if any(isinstance(value, _NO_NUMBERS) for value in values) else tuple(map(float, values))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor without values
        return ()


def _is_preprocess(value: object) -> TypeGuard[Preprocess]:
    """Whether it is a Preprocess and no subclass, whose changes would be lost when an engine is loaded."""
    return type(value) is Preprocess


def by_input(preprocess: object, names: Sequence[str]) -> dict[str, Preprocess]:
    """Find the input that each Preprocess is for.

    Args:
        preprocess: a `Preprocess` for the only input, a Mapping of inputs' names to such, or None.
        names: the inputs'.

    Raises:
        InputError: something else, one for several inputs, or no such input; lists the inputs.
    """
    if preprocess is None:
        return {}
    if _is_preprocess(preprocess):
        if len(names) != 1:
            raise InputError(
                "preprocess",
                got="one Preprocess for several inputs",
                allowed=f"one for an input of {', '.join(names)}",
                fix=f"say which, e.g. {{{names[0]!r}: Preprocess(...)}}",
            )
        return {names[0]: preprocess}
    if not isinstance(preprocess, Mapping):
        raise InputError(
            "preprocess",
            got=kind_of(preprocess),
            allowed="a Preprocess, or a dict of them by input",
            fix="for another computation, deploy a module that makes it before it calls the model",
        )
    given = cast("Mapping[str, object]", preprocess)
    for name, one in given.items():
        if name not in names:
            raise InputError(
                f"preprocess[{name!r}]",
                got="no such input",
                allowed=f"one of {', '.join(names)}",
                fix=did_you_mean(name, names, given) or "use one of these names",
            )
        if not _is_preprocess(one):
            raise InputError(
                f"preprocess[{name!r}]",
                got=kind_of(one),
                allowed="a Preprocess",
                fix="leave the input out if it has none",
            )
    return cast("dict[str, Preprocess]", dict(given))
