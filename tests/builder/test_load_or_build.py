"""What decides which engine is built, for the cache's key."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch2engine as t2e
from tests.support.paths import PACKAGE
from torch2engine.builder import load_or_build


def test_other_code_of_the_builder_is_another_key(tmp_path: Path) -> None:
    """The builder rewrites graphs, so an engine of an older rewrite is not found again under the same version."""
    mine = shutil.copytree(PACKAGE / "builder", tmp_path / "builder")
    before = load_or_build._digest_of_code(PACKAGE / "builder")
    assert load_or_build.build_environment(t2e.BuildConfig())["builder"] == before
    assert load_or_build._digest_of_code(mine) == before
    load_or_build._digest_of_code.cache_clear()
    rewrite = mine / "rewrites" / "long_sums_to_short_sums.py"
    rewrite.write_bytes(rewrite.read_bytes() + b"#")
    assert load_or_build._digest_of_code(mine) != before
