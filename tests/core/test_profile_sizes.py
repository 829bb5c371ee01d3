"""Sizes that select one of several profiles, against trying all of them."""

from __future__ import annotations

import itertools
import random

from torch2engine.core.profile_sizes import exclusive_sizes, profile_sizes, selects_profile
from torch2engine.core.spec import Axis, Profile, Signature, TensorSpec


def test_own_sizes_are_found_if_there_are_any() -> None:
    """Up to five random boxes in two axes, one of which grows in steps: as a search of every size says, the nearest."""
    chance = random.Random(0)
    axes = (Axis("a", 1, 5, 10), Axis("b", 3, 6, 12, multiple_of=3))
    signature = Signature((TensorSpec("x", "float32", ("a", "b")),), (), axes)
    known = lost = moved = 0
    for _ in range(400):
        profiles = [
            Profile(
                {
                    axis.name: tuple(sorted(axis.multiple_of * chance.randint(1, 4) for _ in range(3)))  # type: ignore[misc]
                    for axis in axes
                }
            )
            for _ in range(chance.randint(1, 5))
        ]
        for index, profile in enumerate(profiles):
            near = profile.sizes(1)
            ranges = [
                range(low, high + 1, axis.multiple_of)
                for axis, (low, _, high) in zip(axes, profile.ranges.values(), strict=True)
            ]
            every = [dict(zip("ab", point, strict=True)) for point in itertools.product(*ranges)]
            own = [sizes for sizes in every if selects_profile(signature, profiles, index, sizes)]
            found = exclusive_sizes(signature, profiles, index, near)
            known += bool(own)
            lost += not own
            assert (found in own) if own else found is None
            if found is not None:
                far = [sum(abs(sizes[name] - near[name]) for name in "ab") for sizes in (found, *own)]
                assert far[0] == min(far[1:])
                moved += found != near
                assert any(
                    selects_profile(signature, profiles, index, sizes)
                    for sizes in profile_sizes(signature, profiles, index)
                )
    assert min(known, lost, moved) > 100
