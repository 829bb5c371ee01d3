"""`make evidence`: figures speak for a tree as long as nothing that they depend on has changed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import Evidence
from benchmarks.staleness import standing_of, standings
from tests.support.benchmark_sheets import sheet
from tests.support.paths import REPOSITORY


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as somebody."""
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with two folders and one commit."""
    for name in ("torch2engine/trt/engine.py", "torch2engine/exporter/export_onnx.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "begin")
    return tmp_path


def measured(checkout: Path, **fields: Any) -> dict[str, Any]:
    """Evidence of the checkout's commit that covers trt/ alone."""
    covers = ["torch2engine/trt"]
    return {**sheet("run", {}), "commit": git(checkout, "rev-parse", "HEAD"), "covers": covers, **fields}


def test_evidence_is_stale_once_a_covered_file_changes(checkout: Path) -> None:
    """A change elsewhere, committed or not, leaves it current; one in a covered folder makes it stale and is named."""
    evidence = measured(checkout)
    (checkout / "torch2engine/exporter/export_onnx.py").write_text("x = 2\n")
    git(checkout, "commit", "-q", "-a", "-m", "elsewhere")
    assert standing_of(evidence, checkout).reason == ""
    (checkout / "torch2engine/trt/engine.py").write_text("x = 3\n")
    assert standing_of(evidence, checkout).reason == "torch2engine/trt/engine.py changed since"
    git(checkout, "commit", "-q", "-a", "-m", "here")
    assert standing_of(evidence, checkout).reason == "torch2engine/trt/engine.py changed since"


def test_evidence_without_covers_speaks_for_the_whole_package(checkout: Path) -> None:
    """Files that are older than `covers` are stale after any change of the package."""
    evidence = measured(checkout)
    del evidence["covers"]
    assert standing_of(evidence, checkout).reason == ""
    (checkout / "torch2engine/exporter/export_onnx.py").write_text("x = 2\n")
    assert standing_of(evidence, checkout).reason == "torch2engine/exporter/export_onnx.py changed since"


def test_evidence_that_nobody_can_place_is_stale(checkout: Path) -> None:
    """A tree with uncommitted changes is no commit, and a commit that git does not know can't be compared."""
    dirty = standing_of(measured(checkout, clean=False), checkout)
    assert dirty.reason == "it was measured on a tree with uncommitted changes"
    unknown = standing_of(measured(checkout, commit="0" * 40), checkout)
    assert unknown.reason.startswith("git does not know its commit (")


def test_every_evidence_file_of_a_folder_is_listed(checkout: Path, tmp_path: Path) -> None:
    """In the order of their names, with the commit and the finding."""
    results = tmp_path / "results"
    results.mkdir()
    for name in ("stress", "models"):
        (results / f"{name}.json").write_text(json.dumps(measured(checkout, name=name)))
    commit = git(checkout, "rev-parse", "--short=8", "HEAD")
    listed = [str(standing).split() for standing in standings(results, checkout)]
    assert listed == [["models", commit, "current"], ["stress", commit, "current"]]


@pytest.mark.parametrize("covers", [[], ["torch2engine/no_such_folder"]])
def test_evidence_that_covers_nothing_is_refused(covers: list[str]) -> None:
    """A folder that is renamed must not leave evidence that is never stale."""
    with pytest.raises(ValueError, match=r"^covers: got .*; expected folders and files of the repository$"):
        Evidence(covers)


@pytest.mark.parametrize(
    "script",
    [
        "attacks",
        "call_overhead",
        "models",
        "deploy",
        "stress",
        "precision",
        "refit",
        "processor",
        "throughput",
        "triton_server",
        "trust",
    ],
)
def test_every_benchmark_says_what_it_covers(script: str) -> None:
    """Each names folders of the package that exist."""
    module = __import__(f"benchmarks.{script}", fromlist=["COVERS"])
    assert module.COVERS
    assert [name for name in module.COVERS if not (REPOSITORY / "torch2engine" / name).exists()] == []
