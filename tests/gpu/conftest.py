"""The GPU suite: its fixtures, and the evidence file that a run leaves.

Enters: a machine with a GPU. Leaves: one JSON with commit, GPU, versions, every test's outcome and the figures that
tests recorded. Apart from the other tests because a run of it is kept as evidence. Nothing here may skip.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.evidence import Evidence, rounded
from torch2engine.core.threads import thread_origin
from torch2engine.trt import cuda_graph_policy

SLOW = ("test_precision.py", "test_refit_traps.py", "test_zoo.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", default=None, help="write the run's evidence to this JSON file")


def _use_one_gpu_of_several() -> None:
    """Give each worker of pytest-xdist one GPU, in turn, so that a machine with several is used whole."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(int(worker.removeprefix("gw")) % torch.cuda.device_count())


def pytest_configure(config: pytest.Config) -> None:
    _use_one_gpu_of_several()
    path = config.getoption("--evidence")
    if path and (config.option.keyword or config.option.markexpr):
        raise pytest.UsageError("--evidence is for whole runs: leave out -k and -m")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)), "evidence")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker("gpu")
    items.sort(key=lambda item: item.path.name not in SLOW)  # or their last ones would be waited for at the end


class Recorder:
    """Collects outcomes and figures and writes them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.evidence = Evidence()
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tests[report.nodeid] = {"id": report.nodeid, "outcome": "failed", "seconds": 0.0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self.tests.setdefault(report.nodeid, {"id": report.nodeid, "outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 3)
        if report.outcome != "passed":
            test["outcome"] = report.outcome
        if report.when == "call":
            self.evidence.figures.update(dict(value for key, value in report.user_properties if key == "figure"))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.evidence.samples["exit_status"] = int(exitstatus)
        self.evidence.tests = list(self.tests.values())
        self.evidence.write(self.path)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Record a figure for the evidence file, by its dotted name."""

    def record(name: str, value: float) -> None:
        record_property("figure", (name, rounded(float(value))))

    return record


@pytest.fixture(autouse=True)
def _runners_threads_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-xdist's own threads wait for no GPU, but "auto" can't know: without this it would make no graphs here."""
    here = threading.current_thread()
    homes = {thread_origin(thread) for thread in threading.enumerate() if thread is not here}
    monkeypatch.setattr(cuda_graph_policy, "_HARMLESS_PACKAGES", (*cuda_graph_policy._HARMLESS_PACKAGES, *homes))


@pytest.fixture(autouse=True, scope="session")
def _convolves_in_float32() -> Iterator[None]:
    """PyTorch's own convolutions, which engines are compared with, are in TF32 by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.cuda.synchronize()
