"""profiles="auto": the sizes that a user names or calls have a profile of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from torch2engine.capture.own_profiles import MOST_PROFILES
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.select_profile import select_profile
from torch2engine.core.spec import Axis, Profile
from torch2engine.deployed.module_access import artifact_of

ROWS = Axis("rows", 1, 4, 32)


def profiles_of(axes: Any, examples: Any = None, rows: int = 6) -> tuple[tuple[Profile, ...], tuple[str, ...]]:
    """The profiles of a call with so many rows in the sample, and the notes."""
    model = nn.Linear(3, 2)
    with undisturbed(model):
        call = capture_call(model, torch.randn(rows, 3), axes, "auto", examples=examples)
    return call.profiles, call.notes


def of_rows(*sizes: int) -> list[Profile]:
    return [Profile({"rows": (size, size, size)}) for size in sizes]


def test_auto_gives_the_sample_and_the_ends_profiles_of_their_own() -> None:
    """The whole range comes first; the sample's size, min, opt and max follow, each once."""
    profiles, _ = profiles_of({"input": {0: ROWS}})
    assert profiles == (Profile({"rows": (1, 4, 32)}), *of_rows(6, 1, 4, 32))
    profiles, _ = profiles_of({"input": {0: ROWS}}, rows=4)
    assert profiles == (Profile({"rows": (1, 4, 32)}), *of_rows(4, 1, 32))


def test_auto_with_examples_gives_only_compared_sizes_profiles() -> None:
    """No profile of its own for a size at which nothing is compared; equal sizes share one."""
    examples = [torch.randn(size, 3) for size in (9, 2, 9)]
    profiles, _ = profiles_of({"input": {0: ROWS}}, examples)
    assert profiles == (Profile({"rows": (1, 4, 32)}), *of_rows(6, 9, 2))


def test_auto_stops_at_the_most_profiles_with_a_note() -> None:
    """The last examples use the profile for all sizes, and the note counts them."""
    examples = [torch.randn(size, 3) for size in range(10, 20)]
    profiles, notes = profiles_of({"input": {0: ROWS}}, examples)
    assert profiles == (Profile({"rows": (1, 4, 32)}), *of_rows(6, *range(10, 10 + MOST_PROFILES - 2)))
    assert any("4 more sizes" in note for note in notes), notes


def test_auto_without_dynamic_axes_makes_one_profile() -> None:
    """Nothing can be added where every size is fixed."""
    assert profiles_of(None) == ((Profile({}),), ())


def test_auto_reaches_the_module_and_its_calls_choose_them() -> None:
    """deploy() passes the profiles on, compares in each of them, and a call uses that of its size."""
    model = nn.Linear(3, 2).eval()
    module = t2e.deploy(
        model,
        torch.randn(4, 3),
        {"input": {0: ROWS}},
        profiles="auto",
        runtime="onnxruntime",
        cache=False,
        progress=None,
    )
    profiles = artifact_of(module).profiles
    assert profiles == (Profile({"rows": (1, 4, 32)}), *of_rows(4, 1, 32))
    for index, rows in enumerate((4, 1, 32), start=1):
        assert select_profile(module.signature, profiles, {"rows": rows}) == index
    compared = {case.case for report in module.report.parity for case in report.rows}
    assert {"profile 1 min", "profile 2 min", "profile 3 min"} <= compared
