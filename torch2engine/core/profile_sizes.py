"""Sizes of axes that select one optimization profile of several.

Enters: a signature and its profiles, which may overlap. Leaves: sizes that select a certain profile. Separate because
comparisons and warm-up both need inputs for every profile. Otherwise its kernels would not run before the first call.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch2engine.core.select_profile import select_profile
from torch2engine.core.spec import Profile, Signature

__all__ = ["exclusive_sizes", "profile_sizes", "selects_profile"]

_MOST_TRIED = 100_000


def selects_profile(signature: Signature, profiles: Sequence[Profile], index: int, sizes: Mapping[str, int]) -> bool:
    """Whether a call of these sizes selects this profile."""
    return profiles[index].contains(sizes) and select_profile(signature, profiles, sizes) == index


def profile_sizes(signature: Signature, profiles: Sequence[Profile], index: int) -> list[dict[str, int]]:
    """Find sizes to try a profile with: min, opt and max; and exclusive sizes if other profiles take all of these."""
    sizes = [profiles[index].sizes(which) for which in range(3)]
    if not any(selects_profile(signature, profiles, index, candidate) for candidate in sizes):
        exclusive = exclusive_sizes(signature, profiles, index, sizes[1])
        sizes += [] if exclusive is None else [exclusive]
    return sizes


def exclusive_sizes(
    signature: Signature, profiles: Sequence[Profile], index: int, near: Mapping[str, int]
) -> dict[str, int] | None:
    """Find sizes that select this very profile, near given ones; None if other profiles take all of its sizes.

    Args:
        signature: the axes, with their steps.
        profiles: all of them.
        index: which one.
        near: sizes inside it.
    """
    if selects_profile(signature, profiles, index, near):
        return dict(near)
    # Profiles are boxes. If there is such a point at all, there is one whose coordinates lie at or next to their sides.
    sides: list[list[int]] = []
    for name, (low, _, high) in profiles[index].ranges.items():
        step = signature.axis(name).multiple_of
        points = {near[name], low}
        for other in profiles:
            first, _, last = other.ranges[name]
            lowest = -(-first // step) * step
            highest = last // step * step
            points |= {lowest - step, lowest, highest, highest + step}
        inside = (point for point in points if low <= point <= high and point % step == 0)
        sides.append(sorted(inside, key=lambda point: abs(point - near[name])))
    tried = (
        dict(zip(profiles[index].ranges, point, strict=True))
        for point in itertools.islice(itertools.product(*sides), _MOST_TRIED)
    )
    exclusive = (sizes for sizes in tried if selects_profile(signature, profiles, index, sizes))
    return min(exclusive, key=lambda sizes: sum(abs(sizes[name] - near[name]) for name in sizes), default=None)
