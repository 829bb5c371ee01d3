"""`torch2engine.deploy_steps.earlier_engines`: engines are remembered, found again, and forgotten when they are wrong.

Enters: a small model and a cache. Leaves: proof that the engine that a deploy remembered is offered to the next one.
Whether an engine that is found is right is seen on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch2engine as t2e
from tests.deploy_steps.test_request_facts import BATCH, net, request_for
from tests.support.sample_artifacts import fresh_engine
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import EngineCache, RequestRecord, hash_facts
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.load_or_build import PendingEngine
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.deploy_steps import earlier_engines as room
from torch2engine.deploy_steps.accept import store_in_cache
from torch2engine.deploy_steps.earlier_engines import EarlierEngines
from torch2engine.deploy_steps.reference_answers import answer_parity_cases
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request_facts import graph_facts


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cache_key": 7}, "cache_key: got 7; allowed: a text that names the model's code, or None"),
        ({"cache_key": ""}, "cache_key: got ''; allowed: a text"),
        ({"tolerance": 1e-3}, "tolerance: got 0.001; allowed: a Tolerance, a Mapping from output names"),
        ({"cache_key": "a", "cache": False}, "cache_key: got 'a' without a cache; allowed: one beside cache=True"),
    ],
)
def test_key_that_is_none_is_refused(options: dict[str, Any], text: str) -> None:
    """Before any work is done."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.deploy(net(), torch.ones(4, 4), runtime="onnxruntime", **options)
    error = caught.value
    assert f"{error.subject}: got {error.got}; allowed: {error.allowed}".startswith(text)


# Records of requests


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def test_record_is_found_until_it_is_forgotten(cache: EngineCache) -> None:
    """It says which engine it is about, and what was found out."""
    request, engine = hash_facts({"n": 1}), hash_facts({"n": 2})
    assert cache.read_record(request) is None
    cache.write_record(request, RequestRecord(engine, {"notes": ["é", 1, None]}))
    assert cache.read_record(request) == RequestRecord(engine, {"notes": ["é", 1, None]})
    assert [path.name for path in (cache.folder / "requests").iterdir()] == [request]
    cache.remove_record(request)
    cache.remove_record(request)
    assert cache.read_record(request) is None


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data.replace(b"1", b"2", 1)])
def test_damaged_record_is_none(damage: Callable[[bytes], bytes], cache: EngineCache) -> None:
    """A machine that lost power may leave part of one."""
    request = hash_facts({"n": 1})
    cache.write_record(request, RequestRecord(hash_facts({"n": 2}), {"number": 1}))
    path = cache.folder / "requests" / request
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read_record(request) is None


def test_records_go_with_their_engines(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning removes those whose engine is not there, once nobody can be about to store it."""
    request = hash_facts({"n": 1})
    cache.write_record(request, RequestRecord(hash_facts({"n": 2}), {}))
    cache.prune()
    assert cache.read_record(request) is not None
    monkeypatch.setattr(importlib.import_module("torch2engine.artifact.engine_cache"), "_RECORD_GRACE_S", -1.0)
    cache.prune()
    assert cache.read_record(request) is None


def test_folder_that_everybody_may_write_to_has_no_records(cache: EngineCache) -> None:
    """They decide which code runs."""
    request = hash_facts({"n": 1})
    cache.write_record(request, RequestRecord(hash_facts({"n": 2}), {}))
    cache.folder.chmod(0o777)
    assert cache.read_record(request) is None


def test_report_parts_go_through_a_record() -> None:
    """What is told of lowering and of the engine's types comes back as it was."""
    from torch2engine.core.precision_outcome import KeptModule, PrecisionOutcome
    from torch2engine.core.precision_report import MultiplyAddNode, PrecisionReport

    outcome = PrecisionOutcome(
        dtype="fp16", nodes=3, low=2, kept=(KeptModule("head", 1, "asked"),), attempts=("one",), errors={"head": 0.5}
    )
    again = json.loads(json.dumps(outcome.to_json()))
    assert PrecisionOutcome.from_json(again) == outcome
    assert PrecisionOutcome.from_json(replace(outcome, errors=None).to_json()).errors is None
    report = PrecisionReport((MultiplyAddNode("a", "Conv", "body", "fp16", 7, "fp16"),), {"fp16": 2})
    assert PrecisionReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_hashes_are_there_when_they_are_asked_for(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked out beside something else they are the same, and a file that is gone is told by who asks."""
    hashed_in: list[str] = []
    hash_files = vars(room)["_hash_files"]

    def note_thread(artifact: OnnxArtifact) -> None:
        hashed_in.append(threading.current_thread().name)
        hash_files(artifact)

    monkeypatch.setattr(room, "_hash_files", note_thread)
    model = net()
    earlier_engines = EarlierEngines(request_for(model), cache, None, ReportBuilder())
    first, second = (t2e.export(model, torch.ones(4, 4), {"x": {0: BATCH}}) for _ in range(2))
    with earlier_engines.hashing_in_thread(first):
        pass
    assert hashed_in == ["torch2engine hash"]
    assert graph_facts(first, refittable=False) == graph_facts(second, refittable=False)
    third = t2e.export(model, torch.ones(4, 4), {"x": {0: BATCH}})
    third.onnx_path.unlink()
    with earlier_engines.hashing_in_thread(third):
        pass
    with pytest.raises(t2e.ArtifactError):
        graph_facts(third, refittable=False)


# Found again


class Earlier:
    """A cache, and deploys that find or remember an engine in it; what only a GPU can do is left out."""

    def __init__(self, cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = cache
        exported = t2e.export(net(), torch.ones(4, 4), {"x": {0: BATCH}})
        sample = fresh_engine(tmp_path / "sample")
        folder = tmp_path / "engine"
        folder.mkdir()
        (folder / "model.plan").write_bytes(sample.read_plan())
        self.engine = EngineArtifact.from_onnx(exported, folder, hardware=sample.hardware)
        self.accepted: list[Any] = []
        self.failure: Exception | None = None
        monkeypatch.setattr(CapturedCall, "target_gpu", torch.device("cpu"))
        monkeypatch.setattr(room, "current_driver", lambda: self.engine.hardware.driver)
        monkeypatch.setattr(room, "accept", self.accept)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        # The sample engine has no compiled kernels.
        self.runtime_config = t2e.RuntimeConfig(kernel_specialization="eager")

    def accept(self, candidate: Any, request: Any, gpu: Any, report: ReportBuilder) -> Any:
        report.add_notes(["compared"])
        if self.failure is not None:
            raise self.failure
        self.accepted.append(candidate)
        return SimpleNamespace(
            precision="fp32",
            memory_bytes=7,
            runtime="TensorRT-RTX",
            report=None,
            trim=lambda: None,
            _artifact=self.engine,
        )

    def deploy(self, cache_key: str | None) -> tuple[str, Any]:
        """How an engine was found, "" for not at all, and the module; what was not found is remembered."""
        model = net()
        report = ReportBuilder()
        request = request_for(model, runtime_config=self.runtime_config)
        earlier_engines = EarlierEngines(request, self.cache, cache_key, report)
        with undisturbed(model):
            captured = capture_call(model, torch.ones(4, 4), {"x": {0: BATCH}})
            report.add_notes(["captured"])
            earlier = earlier_engines.find_by_cache_key(captured)
            if earlier is not None:
                return "cache_key", earlier
            artifact = t2e.export(model, torch.ones(4, 4), {"x": {0: BATCH}})
            answers = answer_parity_cases(captured, ("fp32",))
            earlier = earlier_engines.find_by_graph(artifact, captured, answers)
            if earlier is not None:
                return "graph", earlier
        key = hash_facts({"engine": 1})
        module: Any = SimpleNamespace(compiled=lambda: self.engine)
        store_in_cache(PendingEngine(self.engine, self.cache, key), module, request)
        lowered: Any = SimpleNamespace(outcome=None, reports=(), notes=("lowered",))
        precision: Any = SimpleNamespace(report=None, notes=("verified",))
        report.add_lowering(lowered)
        report.add_engine_precision(precision)
        earlier_engines.record_for_later(key)
        return "", report.build("fp32")


@pytest.fixture
def earlier(cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Earlier:
    return Earlier(cache, tmp_path, monkeypatch)


def test_engine_is_found_by_both_keys_with_its_notes(earlier: Earlier) -> None:
    """By the cache_key before the export, else by the graph; the report tells what the first deploy found."""
    assert earlier.deploy("net 1")[0] == ""
    by_key, module = earlier.deploy("net 1")
    assert by_key == "cache_key"
    assert module.report.notes == ("captured", "lowered", "verified", "compared", room._FROM_CACHE)
    assert list(module.report.seconds) == ["recall", "reference", "parity"]
    assert (module.report.precision, module.report.memory_bytes) == ("fp32", 7)
    assert earlier.deploy("net 2")[0] == "graph"
    assert earlier.deploy(None)[0] == "graph"
    assert all(candidate.is_reused for candidate in earlier.accepted)


def test_engine_that_is_wrong_is_forgotten_and_leaves_nothing_in_the_report(earlier: Earlier) -> None:
    """The warning points at the caller; the long road's report has no word of the attempt, and remembers anew."""
    earlier.deploy("net 1")
    earlier.failure = t2e.RefitError("parity")
    with pytest.warns(UserWarning, match="is not taken, and the model is deployed anew: parity") as caught:
        found, report = earlier.deploy("net 1")
    assert {warning.filename for warning in caught} == {__file__}
    assert found == ""
    assert report.notes == ("captured", "lowered", "verified")
    earlier.failure = None
    assert earlier.deploy("net 1")[0] == "cache_key"


@pytest.mark.parametrize(
    "failure",
    [
        t2e.InputError("sample_input"),
        t2e.InstallationError("TensorRT"),
        t2e.BuildError("deploy", cancelled=True),
        t2e.BuildError("execution context", out_of_memory=True),
    ],
    ids=["input", "installation", "cancelled", "memory"],
)
def test_failure_that_is_no_fault_of_the_engine_is_raised(earlier: Earlier, failure: t2e.Torch2EngineError) -> None:
    """The engine stays, and a later deploy finds it."""
    earlier.deploy("net 1")
    earlier.failure = failure
    with pytest.raises(type(failure)):
        earlier.deploy("net 1")
    earlier.failure = None
    assert earlier.deploy("net 1")[0] == "cache_key"
