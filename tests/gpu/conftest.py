"""The GPU suite: its fixtures, and the evidence file that a run leaves.

Enters: a machine with a GPU. Leaves: one JSON with commit, GPU, versions, every test's outcome and the figures that
tests recorded. Apart from the other tests because a run of it is kept as evidence. Nothing here may skip.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2engine as t2e
from torch2engine import device

REPOSITORY = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "torchvision", "timm", "transformers")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", default=None, help="write the run's evidence to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--evidence")
    if path and (config.option.keyword or config.option.markexpr):
        raise pytest.UsageError("--evidence is for whole runs: leave out -k and -m")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Evidence(Path(path)), "evidence")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker("gpu")


class Evidence:
    """Collects outcomes and figures and writes them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = time.time()
        self.tests: dict[str, dict[str, Any]] = {}
        self.figures: dict[str, float] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tests[report.nodeid] = {"id": report.nodeid, "outcome": "failed", "seconds": 0.0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self.tests.setdefault(report.nodeid, {"id": report.nodeid, "outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 3)
        if report.outcome != "passed":
            test["outcome"] = report.outcome
        if report.when == "call":
            self.figures.update(dict(value for key, value in report.user_properties if key == "figure"))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        commit, clean = _commit()
        gpus = device.gpus()
        versions = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}
        rt = __import__("torch2engine.trt", fromlist=["find"]).find()
        evidence = {
            "schema": 1,
            "name": self.path.stem,
            "commit": commit,
            "clean": clean,
            "gpu": gpus[0].name,
            "gpu_count": len(gpus),
            "driver": gpus[0].driver,
            "versions": {**versions, rt.name: rt.version, "torch2engine": t2e.__version__},
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "figures": dict(sorted(self.figures.items())),
            "samples": {"exit_status": int(exitstatus)},
            "tests": sorted(self.tests.values(), key=lambda test: test["id"]),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(evidence, indent=1) + "\n")


def _commit() -> tuple[str, bool]:
    """The tree's commit and whether it was clean: from git, or from the stamp of a copy without git."""
    stamp = REPOSITORY / ".gpu" / "COMMIT"
    if stamp.exists():
        commit, state = stamp.read_text().split()
        return commit, state == "clean"
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    return commit, not status.strip()


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Record a figure for the evidence file, by its dotted name."""

    def record(name: str, value: float) -> None:
        record_property("figure", (name, float(f"{value:.4g}")))

    return record


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.cuda.synchronize()
