"""Which sizes only one of several optimization profiles answers.

Enters: a signature and its profiles, which may hold one another. Leaves: sizes by which a profile is reached. Apart
because judging and warming up need it alike, or kernels that none of their inputs reaches would go unseen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch2engine.core.spec import Profile, Signature

__all__ = ["answers", "corners", "own_sizes"]

_MOST_TRIED = 100_000


def answers(signature: Signature, profiles: Sequence[Profile], index: int, sizes: Mapping[str, int]) -> bool:
    """Whether a call of these sizes is answered by this profile."""
    return profiles[index].contains(sizes) and signature.select_profile(profiles, sizes) == index


def corners(signature: Signature, profiles: Sequence[Profile], index: int) -> list[dict[str, int]]:
    """min, opt and max of a profile; and, if others answer all of these, sizes of its own where there are any."""
    found = [profiles[index].sizes(which) for which in range(3)]
    if not any(answers(signature, profiles, index, sizes) for sizes in found):
        own = own_sizes(signature, profiles, index, found[1])
        found += [] if own is None else [own]
    return found


def own_sizes(
    signature: Signature, profiles: Sequence[Profile], index: int, near: Mapping[str, int]
) -> dict[str, int] | None:
    """The sizes nearest to some in a profile that this very profile answers; None if others answer all of its sizes.

    Args:
        signature: the axes, with their steps.
        profiles: all of them.
        index: which one.
        near: sizes inside it.
    """
    if answers(signature, profiles, index, near):
        return dict(near)
    # Profiles are boxes: if there is such a point at all, there is one whose coordinates lie at or next to their sides.
    sides: list[list[int]] = []
    for name, (low, _, high) in profiles[index].ranges.items():
        step = signature.axis(name).multiple_of
        points = {near[name], low}
        for other in profiles:
            first, _, last = other.ranges[name]
            lowest, highest = -(-first // step) * step, last // step * step
            points |= {lowest - step, lowest, highest, highest + step}
        inside = (point for point in points if low <= point <= high and point % step == 0)
        sides.append(sorted(inside, key=lambda point: abs(point - near[name])))
    tried = (
        dict(zip(profiles[index].ranges, point, strict=True))
        for point in itertools.islice(itertools.product(*sides), _MOST_TRIED)
    )
    own = (sizes for sizes in tried if answers(signature, profiles, index, sizes))
    return min(own, key=lambda sizes: sum(abs(sizes[name] - near[name]) for name in sizes), default=None)
