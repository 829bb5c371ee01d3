"""What a user may choose, as frozen values: `BuildConfig` and `Tolerance`.

Enters: keyword arguments. Leaves: validated values; a wrong one never gets past construction. A room of its own so
that an option exists exactly once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from torch2engine.errors import InputError

__all__ = ["FLAVOURS", "PRECISIONS", "RUNTIMES", "BuildConfig", "Tolerance", "choice"]

PRECISIONS = ("fp32", "tf32")
RUNTIMES = ("tensorrt", "onnxruntime", "auto")
FLAVOURS = ("tensorrt", "tensorrt_rtx")


def choice(subject: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the allowed words.

    Raises:
        InputError: listing the allowed words.
    """
    if value not in allowed:
        raise InputError(subject, got=repr(value), allowed="one of " + ", ".join(map(repr, allowed)))


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How TensorRT builds.

    Args:
        flavour: "tensorrt", "tensorrt_rtx", or None for the one that is installed (TensorRT where both are).
        workspace_bytes: the most device memory, in bytes, that a layer may use while it runs and while the builder
            tries tactics; None leaves TensorRT's own limit (all of the device's memory).

    Raises:
        InputError: an unknown flavour, or a workspace that is no positive int.
    """

    flavour: str | None = None
    workspace_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.flavour is not None:
            choice("BuildConfig.flavour", self.flavour, FLAVOURS)
        size = cast("object", self.workspace_bytes)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise InputError(
                "BuildConfig.workspace_bytes",
                got=repr(size),
                allowed="a positive int, in bytes, or None",
                fix="e.g. workspace_bytes=4 << 30 for 4 GiB",
            )


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """When a candidate output counts as equal to its reference.

    Args:
        rel_l2: bound on ‖candidate − reference‖₂ / ‖reference‖₂ over a whole output.
        max_rel: bound on every element's |candidate − reference|, in units of |reference| plus the root mean square
            of the reference's row (its slice along dimension 0), so one wrong element can't hide in a large tensor.
        abs: absolute difference that always passes, for references that are zero throughout.
        mismatch: share of the elements of an integer or bool output that may differ (argmax near ties, say).

    Raises:
        InputError: a bound that is negative or not finite.
    """

    rel_l2: float = 1e-4
    max_rel: float = 1e-3
    abs: float = 1e-7
    mismatch: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rel_l2", "max_rel", "abs", "mismatch"):
            value = cast("object", getattr(self, name))
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
                raise InputError(f"Tolerance.{name}", got=repr(value), allowed="a finite number of at least 0")

    @classmethod
    def default(cls, precision: str) -> Tolerance:
        """The tolerance that goes with a precision: "fp32", "tf32", "fp16" or "bf16".

        The bounds are about ten times the unit roundoff of the arithmetic (2⁻²⁴, 2⁻¹¹, 2⁻¹¹, 2⁻⁸) as it adds up
        over networks of a hundred layers, rounded to a power of ten or its half.
        """
        return _DEFAULTS[precision]


_DEFAULTS = {
    "fp32": Tolerance(rel_l2=1e-4, max_rel=1e-3),
    "tf32": Tolerance(rel_l2=5e-3, max_rel=5e-2),
    "fp16": Tolerance(rel_l2=1e-2, max_rel=1e-1, abs=1e-4),
    "bf16": Tolerance(rel_l2=5e-2, max_rel=5e-1, abs=1e-3),
}
