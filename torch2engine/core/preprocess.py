"""How bytes become a model's input, as data: `Preprocess`, which `spec` hands on.

Enters: what a user says of images. Leaves: validated numbers, JSON-able, and one arithmetic for PyTorch's answers and
the graph. Apart from `spec` only for its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from torch2engine.core.errors import DtypeError, InputError, ShapeError
from torch2engine.core.package import public

__all__ = ["ORIGIN", "Preprocess", "by_input"]

ORIGIN = "(preprocess)"  # where nodes come from that no module of the model made; no module can be called so

LAYOUTS = ("NHWC", "NCHW")
_DIMENSIONS = {"N": "batch", "H": "height", "W": "width", "C": "channels"}


@public
@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How images of bytes become the input of a model: ``(x * scale - mean) / std``, in the order NCHW.

    Computed in float32, as one product and one sum with ``scale / std`` and ``-mean / std``, which differs from the
    formula by float32's rounding alone; then cast to the dtype of the model's first floating parameter.

    Args:
        mean, std: in units of ``x * scale``; one number, or one for each channel.
        scale: of a byte, e.g. ``1 / 255``.
        layout: of the bytes, "NHWC" or "NCHW"; the model gets (batch, channels, height, width).

    Raises:
        InputError: a number that is not finite, a std or scale that is not positive, another number of means than of
            stds, a mean that no byte times `scale` reaches, or an unknown layout.

    >>> Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).channels
    3
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
        for name in ("mean", "std", "scale"):
            # Frozen, so hashable too: lists, arrays and tensors become tuples.
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        lengths = [len(value) for value in (self.mean, self.std) if isinstance(value, tuple)]
        if len(set(lengths)) > 1:
            raise InputError(
                "Preprocess",
                got=f"{lengths[0]} means and {lengths[1]} stds",
                allowed="one number for all channels, or one for each",
                fix="give as many of both as the images have channels",
            )
        largest = max(map(abs, cast("tuple[float, ...]", self.mean if isinstance(self.mean, tuple) else (self.mean,))))
        if largest > 255 * self.scale * (1 + 1e-6):  # the same formula is on both sides of parity, which can't tell
            raise InputError(
                "Preprocess.mean",
                got=f"{largest:g}, while x * scale is at most {255 * self.scale:g}",
                allowed="a mean in units of x * scale",
                fix="pass scale=1 for a mean and std of bytes",
            )

    @property
    def channels(self) -> int | None:
        """How many channels the numbers are for; None if for any."""
        return next((len(value) for value in (self.mean, self.std) if isinstance(value, tuple)), None)

    def __call__(self, images: Any) -> Any:
        """What the model gets, but for its dtype.

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
        """What every channel is multiplied by and what is added to it."""
        count = self.channels or 1
        means, stds = (
            cast("tuple[float, ...]", value if isinstance(value, tuple) else (value,) * count)
            for value in (self.mean, self.std)
        )
        return [self.scale / std for std in stds], [-mean / std for mean, std in zip(means, stds, strict=True)]

    def check(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        """Refuse a sample that is no such image.

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
                got=f"dtype is {dtype}",
                allowed="uint8: preprocess= takes bytes",
                fix=f"pass the image's bytes, ({order})",
            )
        if len(shape) != len(self.layout):
            raise ShapeError(
                subject,
                name=name,
                got=f"shape {list(shape)} has {len(shape)} dimensions",
                allowed=f"Preprocess takes {self.layout}, ({order})",
                fix=f"unsqueeze(0) adds a batch, unsqueeze({self.layout.index('C') - 4}) channels",
            )
        found, wanted = shape[self.layout.index("C")], self.channels
        if wanted not in (None, found):
            other = next(layout for layout in LAYOUTS if layout != self.layout)
            swapped = shape[other.index("C")] == wanted
            raise ShapeError(
                subject,
                name=name,
                got=f"shape {list(shape)} has {found} channels in the order {self.layout}",
                allowed=f"{wanted}, one for each number of mean and std",
                fix=f"pass layout={other!r}" if swapped else "give as many numbers as there are channels, or one",
            )

    def to_json(self) -> dict[str, Any]:
        values = (list(value) if isinstance(value, tuple) else value for value in (self.mean, self.std))
        mean, std = values
        return {"mean": mean, "std": std, "scale": self.scale, "layout": self.layout}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocess:
        return cls(**data)


def _numbers(name: str, given: object) -> float | tuple[float, ...]:
    """A float, or a tuple of them where `value` holds several."""
    value: Any = given
    shown = repr(given)
    several, positive = name != "scale", name in ("std", "scale")
    wrong: tuple[type, ...] = (bool, str, bytes, set, frozenset, Mapping)  # sets have no order, and keys are no values
    try:
        items: tuple[Any, ...] | None = tuple(value) if several and not isinstance(given, wrong) else None
    except TypeError:
        items = None
    try:
        each: Any = [value] if items is None else items
        found = [] if any(isinstance(item, wrong) for item in each) else [float(item) for item in each]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor without values
        found = []
    if not found or not all(map(math.isfinite, found)) or (positive and min(found) <= 0):
        one = "a finite number above 0" if positive else "a finite number"
        allowed = one + ", or one for each channel" * several
        fix = "pass " + ("a float, or a list of floats" if several else "1 / 255 for floats of 0 to 1, or 1 for bytes")
        raise InputError(f"Preprocess.{name}", got=shown, allowed=allowed, fix=fix)
    return found[0] if items is None else tuple(found)


def _is_one(value: object) -> TypeGuard[Preprocess]:
    """Whether it is a Preprocess itself: what a subclass does would be lost by whoever loads the engine."""
    return type(value) is Preprocess


def by_input(preprocess: object, names: Sequence[str]) -> dict[str, Preprocess]:
    """Settle which input each is for.

    Args:
        preprocess: a `Preprocess` for the only input, a Mapping of inputs' names to such, or None.
        names: the inputs'.

    Raises:
        InputError: something else, one for several inputs, or no such input; lists the inputs.
    """
    if preprocess is None:
        return {}
    if _is_one(preprocess):
        if len(names) != 1:
            raise InputError(
                "preprocess",
                got="one Preprocess for several inputs",
                allowed=f"inputs are {', '.join(names)}",
                fix=f"say which, e.g. {{{names[0]!r}: Preprocess(...)}}",
            )
        return {names[0]: preprocess}
    if not isinstance(preprocess, Mapping):
        raise InputError(
            "preprocess",
            got=f"a {type(preprocess).__name__}",
            allowed="a Preprocess, or a dict of them by input",
            fix="for another computation, deploy a module that makes it before it calls the model",
        )
    found = cast("Mapping[str, object]", preprocess)
    for name, one in found.items():
        if name not in names:
            raise InputError(
                f"preprocess[{name!r}]",
                got="no such input",
                allowed=f"inputs are {', '.join(names)}",
                fix="use one of these names",
            )
        if not _is_one(one):
            raise InputError(
                f"preprocess[{name!r}]",
                got=f"a {type(one).__name__}",
                allowed="a Preprocess",
                fix="leave the input out if it has none",
            )
    return cast("dict[str, Preprocess]", dict(found))
