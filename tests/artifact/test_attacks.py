"""A slice of the attacks of `benchmarks/attacks.py`, which try thousands: nothing lost, nothing foreign executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import attacks
from benchmarks.attacks import ATTACKS, attack
from torch2engine.artifact import file_access
from torch2engine.artifact.file_access import FileRecord


def test_attacks_do_no_harm(tmp_path: Path) -> None:
    """Every kind is tried, on artifacts, the cache and scratch folders."""
    tally = attack(tmp_path / "arena", seed=0, count=10 * len(ATTACKS))
    assert tally.holes == []
    assert set(tally.tried.values()) == {10}


def test_attacks_see_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the comparison of hashes, damage is loaded, and the attacks say so."""
    assert attacks.damaged_artifact in ATTACKS
    monkeypatch.setattr(file_access.FileRecord, "__eq__", lambda self, other: isinstance(other, FileRecord))
    tally = attack(tmp_path / "arena", seed=0, count=4 * len(ATTACKS))
    assert any("an artifact was loaded with other bytes" in hole for hole in tally.holes)
