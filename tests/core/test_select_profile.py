"""The choice of one optimization profile of several, and the errors of sizes that none holds."""

from __future__ import annotations

import pytest

from torch2engine.core.errors import ShapeError
from torch2engine.core.select_profile import select_profile
from torch2engine.core.spec import Axis, Profile, Signature, TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 3, "side", "side"))
SIGNATURE = Signature((IMAGE,), (), (Axis("batch", 1, 4, 16), Axis("side", 32, 64, 256, multiple_of=32)))
PROFILES = [
    Profile({"batch": (1, 4, 8), "side": (32, 64, 128)}),
    Profile({"batch": (1, 1, 1), "side": (32, 64, 256)}),
    Profile({"batch": (16, 16, 16), "side": (32, 32, 32)}),
]


def test_select_profile_takes_the_narrowest_that_fits() -> None:
    """Its kernels are made for the fewest sizes; the order of the profiles only settles ties."""
    for profiles in (PROFILES, PROFILES[::-1]):
        found = {
            sizes: profiles[select_profile(SIGNATURE, profiles, dict(zip(("batch", "side"), sizes, strict=True)))]
            for sizes in ((1, 64), (1, 256), (2, 64), (16, 32))
        }
        assert found == {(1, 64): PROFILES[1], (1, 256): PROFILES[1], (2, 64): PROFILES[0], (16, 32): PROFILES[2]}
    alike = [Profile({"batch": (1, 1, 2), "side": (64, 64, 64)}), Profile({"batch": (1, 2, 2), "side": (64, 64, 64)})]
    assert select_profile(SIGNATURE, alike, {"batch": 1, "side": 64}) == 0


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        (
            {"batch": 64, "side": 64},
            "input 'image': got batch = 64; expected 1..8 or 1..1 or 16..16; redeploy with Axis('batch', 1, 4, 64)",
        ),
        (
            {"batch": 4, "side": 512},
            "input 'image': got side = 512; expected 32..128 or 32..256 or 32..32; redeploy with "
            "Axis('side', 32, 64, 512, multiple_of=32)",
        ),
        (
            {"batch": 0, "side": 64},
            "input 'image': got batch = 0; expected 1..8 or 1..1 or 16..16; an engine can't answer empty axes",
        ),
        (
            {"batch": 8, "side": 256},
            "inputs: got batch = 8, side = 256; expected sizes that one profile allows together: "
            "batch 1..8 (opt 4), side 32..128 (opt 64) | batch 1..1 (opt 1), side 32..256 (opt 64) | "
            "batch 16..16 (opt 16), side 32..32 (opt 32); add a profile that holds them to profiles=",
        ),
    ],
)
def test_select_profile_refuses_sizes_outside_every_profile(sizes: dict[str, int], text: str) -> None:
    """The error names the axis, its ranges and an Axis that would hold it."""
    with pytest.raises(ShapeError) as error:
        select_profile(SIGNATURE, PROFILES, sizes)
    assert str(error.value) == text


def test_suggested_axis_is_valid_and_holds_the_size() -> None:
    """Following the advice of the error works."""
    signature = Signature((TensorSpec("x", "float32", ("n",)),), (), (Axis("n", 8, 16, 32, multiple_of=8),))
    for size in (8 * k for k in (1, 5, 100)):
        profiles = [Profile({"n": (16, 16, 32)})]
        with pytest.raises(ShapeError) as error:
            select_profile(signature, profiles, {"n": size})
        advice = error.value.fix.removeprefix("redeploy with ")
        axis: Axis = eval(advice, {"Axis": Axis})
        assert Profile({"n": axis.range}).contains({"n": size})
        assert axis.multiple_of == 8
