"""The sizes that a user names or calls → an optimization profile of their own for each, beside the one for all.

Enters: a captured call with one profile. Leaves: it with more profiles. Separate because it needs the sample, the
axes and the examples together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.core.spec import Profile

__all__ = ["OWN_PROFILES", "with_own_profiles"]

OWN_PROFILES = "auto"  # the value of profiles= that asks for them
MOST_PROFILES = 8  # each costs a comparison, and the compilation of its kernels when the engine starts


def with_own_profiles(captured: CapturedCall) -> CapturedCall:
    """Add a profile for the sample's sizes, and for those of each example.

    Without examples, the axes' min, opt and max get one each. These are the sizes at which the engine is compared. The
    profile for the whole range stays the first one. Of more than `MOST_PROFILES`, the last examples get none, and a
    note says so.

    Args:
        captured: with its examples, and with the one profile that its axes make.
    """
    (whole,) = captured.profiles
    if not whole.ranges:
        return captured
    all_sizes = [captured.sample_sizes()]
    if captured.examples:
        all_sizes += [_sizes_of(captured, example) for example in captured.examples]
    else:
        all_sizes += [whole.sizes(which) for which in range(3)]
    profiles = tuple(dict.fromkeys([whole, *(_profile_of(sizes, whole) for sizes in all_sizes)]))
    left = len(profiles) - MOST_PROFILES
    if left <= 0:
        return replace(captured, profiles=profiles)
    note = f"profiles='auto' made {MOST_PROFILES} profiles; {left} more sizes of the examples use the one for all sizes"
    return replace(captured, profiles=profiles[:MOST_PROFILES], notes=(*captured.notes, note))


def _sizes_of(captured: CapturedCall, leaves: tuple[torch.Tensor, ...]) -> dict[str, int]:
    return captured.signature.resolve([leaf.shape for leaf in leaves])


def _profile_of(sizes: Mapping[str, int], whole: Profile) -> Profile:
    """The profile that allows these sizes of the dynamic axes alone."""
    return Profile({name: (sizes[name], sizes[name], sizes[name]) for name in whole.ranges})
