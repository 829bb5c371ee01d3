"""The pinned requirements fit together: the demo's are the developers' own, and all that its packages need."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.paths import REPOSITORY

REQUIREMENTS = REPOSITORY / "requirements"
# What users of the demo install beside the package's own dependencies.
DEMO = ("scikit-learn", "tensorrt-rtx")


def pins(path: Path) -> set[str]:
    """The lines that pin a version, with their conditions."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def canonical(name: str) -> str:
    """A distribution's name as lock files spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, found: set[str]) -> set[str]:
    """A distribution and all that it needs on this machine, by what is installed."""
    if name in found:
        return found
    found.add(name)
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(canonical(requirement.name), found)
    return found


def test_demo_has_the_versions_of_the_developers() -> None:
    """What a newcomer sees is what was tested."""
    assert pins(REQUIREMENTS / "demo.txt") <= pins(REQUIREMENTS / "dev.lock")


def test_demo_has_all_that_its_packages_need_and_no_tool() -> None:
    """`make demo` installs nothing that only developers use, and misses nothing."""
    wanted: set[str] = set()
    for name in ("torch2engine", *DEMO):
        needed(name, wanted)
    pinned = {re.split("[= ;]", line)[0] for line in pins(REQUIREMENTS / "demo.txt")}
    cuda = {name for name in wanted if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert wanted - cuda - {"torch2engine"} <= pinned
    assert not pinned & {"pytest", "ruff", "pyright", "transformers", "nvidia-modelopt", "click"}
