"""Which optimization profile of several answers a call.

Enters: a signature, its profiles, and the size of every axis. Leaves: the index of a profile, or an error that says
which sizes there are. Separate because calls, comparisons and serving must all choose the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch2engine.core.errors import ShapeError
from torch2engine.core.spec import Profile, Signature

__all__ = ["select_profile"]


def select_profile(signature: Signature, profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int:
    """Find the narrowest profile that holds these sizes; of several equally narrow ones, the first.

    TensorRT has kernels for fewer sizes in a narrow profile, and these are faster.

    Args:
        signature: of the call, for errors.
        profiles: all of them.
        sizes: axis name -> size.

    Returns:
        the index of the profile.

    Raises:
        ShapeError: no profile holds them; the message names the axis, its range and how to widen it.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.contains(sizes)]
    if not fitting:
        raise _no_profile(signature, profiles, sizes)
    return fitting[0] if len(fitting) == 1 else min(fitting, key=lambda index: profiles[index].breadth)


def _no_profile(signature: Signature, profiles: Sequence[Profile], sizes: Mapping[str, int]) -> ShapeError:
    for name, size in sizes.items():
        ranges = [profile.ranges[name] for profile in profiles]
        if not any(low <= size <= high for low, _, high in ranges):
            spec = next(s for s in signature.inputs if name in s.shape)
            low = min(r[0] for r in ranges)
            opt = ranges[0][1]
            high = max(r[2] for r in ranges)
            allowed = " or ".join(dict.fromkeys(f"{r[0]}..{r[2]}" for r in ranges))
            multiple = next((axis.multiple_of for axis in signature.axes if axis.name == name), 1)
            step = f", multiple_of={multiple}" if multiple > 1 else ""
            return ShapeError(
                f"input '{spec.name}'",
                name=spec.name,
                got=f"{name} = {size}",
                allowed=allowed,
                fix=f"redeploy with Axis({name!r}, {min(low, size)}, {opt}, {max(high, size)}{step})"
                if size
                else "an engine can't answer empty axes",
            )
    got = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    return ShapeError(
        "inputs",
        got=got,
        allowed="sizes that one profile allows together: " + " | ".join(map(str, profiles)),
        fix="add a profile that holds them to profiles=",
    )
