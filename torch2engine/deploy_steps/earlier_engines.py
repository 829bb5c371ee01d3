"""Finds the engine of an earlier deploy(), so that export, checks and build are not repeated.

Enters: a request, and its cache. Leaves: an engine that was compared with the model again; or None, and deploy() takes
every step. Separate because an earlier engine must be the one that all steps would have built.

deploy() can find an earlier engine at three points, and `EarlierEngines` does the first two:

1. `find_by_cache_key`, before the export: the user's cache_key, the weights and all other arguments are the same.
2. `find_by_graph`, after the export: the ONNX graph and all other arguments are the same.
3. `load_or_build`, before the build: everything that TensorRT reads is the same.

Two kinds of keys lead to an engine. An engine key hashes what TensorRT was given; the third search has it. A record key
hashes what deploy() was given; the first two searches have it. Under a record key the cache stores the engine key.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import EngineCache, RequestRecord, hash_facts
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.load_or_build import current_driver
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.core.errors import Torch2EngineError, may_blame_engine
from torch2engine.core.precision_outcome import PrecisionOutcome
from torch2engine.core.user_warning import warn_user
from torch2engine.deploy_steps.accept import EngineCandidate, accept, attach_report
from torch2engine.deploy_steps.reference_answers import ReferenceAnswers, answer_parity_cases
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deploy_steps.request_facts import graph_facts, incomparable_attribute, model_facts, request_facts
from torch2engine.deployed.trt.trt_module import TRTModule

__all__ = ["EarlierEngines"]

_FROM_CACHE = "engine and graph were made before and come from the cache; the graph was compared with ONNX Runtime then"


class EarlierEngines:
    """Finds the engine of an earlier deploy with the same facts, and records a new one for later deploys.

    Args:
        request: the checked arguments of deploy().
        cache: where earlier engines may be, and where records go; None for nowhere.
        cache_key: the caller's name for the model's code and calibration data, or None.
        report: takes the seconds of a search, and holds the facts about a new engine. A reused engine gets a copy of
            it, to which its own findings are added.
    """

    def __init__(
        self, request: DeployRequest, cache: EngineCache | None, cache_key: str | None, report: ReportBuilder
    ) -> None:
        self._request = request
        self._report = report
        reusable = cache if _may_reuse(request) else None
        self._cache = reusable  # where new records go; None for nowhere
        self._cache_for_key = None if cache_key is None else reusable  # where `find_by_cache_key` looks
        self._cache_for_graph = None if request.has_calibration else reusable  # where `find_by_graph` looks
        self._cache_key = cache_key or ""
        self._searched_keys: list[str] = []  # the record keys of the searches so far

    def find_by_cache_key(self, captured: CapturedCall) -> TRTModule | None:
        """Find the engine of an earlier deploy with the same cache_key, without an export.

        Call it in `undisturbed`, since the model answers the parity cases.

        Args:
            captured: the model's call.

        Returns:
            a module of the engine, compared with the model and with its report. None if nothing is searched or found;
            also, with a warning, if the engine's answers differ from the model's.
        """
        cache = self._cache_for_key
        if cache is None:
            return None
        with self._report.phase("recall"):
            facts = model_facts(self._request, self._cache_key, captured.signature.live_parameters)
            if facts is None:
                if reason := incomparable_attribute(self._request.model):
                    warn_user(f"cache_key is not used, and the model is deployed anew: {reason}")
                return None
            earlier = self._find(cache, facts, captured)
        if earlier is None:
            return None
        captured = captured.with_axes_and_profiles_of(earlier.engine)
        with self._report.phase("reference"):
            reference_answers = answer_parity_cases(captured, self._request.sensitivity_precisions(captured))
        return self._accept(cache, earlier, captured, reference_answers)

    @contextmanager
    def hashing_in_thread(self, artifact: OnnxArtifact) -> Generator[None]:
        """Hash an exported model's files in a thread while the body runs.

        The artifact keeps the hashes, and `find_by_graph` then need not wait for them.
        """
        if self._cache_for_graph is None or self._request.config.refittable:
            yield
            return
        thread = threading.Thread(target=_hash_files, args=(artifact,), name="torch2engine hash", daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def find_by_graph(
        self, artifact: OnnxArtifact, captured: CapturedCall, reference_answers: ReferenceAnswers
    ) -> TRTModule | None:
        """Find the engine of an earlier deploy with the same ONNX graph, source lines included.

        With calibration data there is no search: other data than before would give another engine.

        Args:
            artifact: the exported model; the values of weights that a refit replaces don't matter.
            captured: the model's call.
            reference_answers: the model's answers, with which the engine is compared.

        Returns:
            as `find_by_cache_key`.
        """
        cache = self._cache_for_graph
        if cache is None:
            return None
        with self._report.phase("recall"):
            facts = graph_facts(artifact, self._request.config.refittable)
            earlier = self._find(cache, facts, captured)
        return None if earlier is None else self._accept(cache, earlier, captured, reference_answers)

    def record_for_later(self, engine_key: str) -> None:
        """Record this deploy's engine under the key of every search, so that the searches of later deploys find it.

        Args:
            engine_key: the key under which the engine is in the cache.
        """
        if self._cache is None:
            return
        record = RequestRecord(engine_key, self._report.reusable_findings())
        for record_key in self._searched_keys:
            self._cache.write_record(record_key, record)

    def _record_key(self, facts: Mapping[str, Any], captured: CapturedCall) -> str:
        """The key of the record for the request with these facts."""
        with torch.cuda.device(captured.target_gpu):  # build_environment reads the current GPU
            return hash_facts({**request_facts(self._request, captured), **facts})

    def _find(self, cache: EngineCache, facts: Mapping[str, Any], captured: CapturedCall) -> _EarlierEngine | None:
        """The engine that was recorded for a request with these facts.

        None also for an engine of another driver, or without the kernels that the request needs.

        The key of this search is added to those of `record_for_later`.
        """
        record_key = self._record_key(facts, captured)
        self._searched_keys.append(record_key)
        with torch.cuda.device(captured.target_gpu):  # `current_driver` asks the current GPU
            record = cache.read_record(record_key)
            engine = None if record is None else cache.take(record.engine_key)
            if record is None or engine is None:
                return None
            if engine.onnx_path is None or engine.hardware.driver != current_driver():
                return None
        needs_kernels = (
            self._request.runtime_config.kernel_specialization == "none" and engine.hardware.flavour == "tensorrt_rtx"
        )
        if needs_kernels and not engine.read_runtime_cache():
            return None  # a deploy that takes every step compiles and stores them
        return _EarlierEngine(record_key, engine, record.findings)

    def _accept(
        self,
        cache: EngineCache,
        earlier: _EarlierEngine,
        captured: CapturedCall,
        reference_answers: ReferenceAnswers,
    ) -> TRTModule | None:
        """Make a module of an earlier engine. If its answers differ from the model's, warn and remove its record."""
        report = self._report.copy()
        report.add_reusable_findings(earlier.findings)
        try:
            with report.phase("parity"):
                candidate = EngineCandidate.of_earlier_deploy(
                    earlier.engine, earlier.lowered_to, self._request, reference_answers
                )
                module = accept(candidate, self._request, captured.target_gpu, report)
        except Torch2EngineError as error:
            if not may_blame_engine(error):
                raise
            cache.remove_record(earlier.record_key)
            warn_user(
                f"an engine that was found for this request is not taken, and the model is deployed anew: {error}"
            )
            return None
        cache.refresh_record(earlier.record_key)
        report.add_notes([_FROM_CACHE])
        attach_report(module, report)
        module.trim()
        return module


@dataclass(frozen=True)
class _EarlierEngine:
    """An engine of an earlier deploy.

    Args:
        record_key: of the cache's record that led to it.
        engine: with its ONNX model.
        findings: the `reusable_findings` of the earlier deploy's report.
    """

    record_key: str
    engine: EngineArtifact
    findings: Mapping[str, Any]

    @property
    def lowered_to(self) -> str | None:
        """The precision that the graph was lowered to; None where it was not lowered."""
        outcome = self.findings["outcome"]
        return None if outcome is None else PrecisionOutcome.from_json(outcome).dtype


def _may_reuse(request: DeployRequest) -> bool:
    """Whether an earlier engine may answer; False where every deploy must take all steps."""
    budget = request.precision.budget
    if budget is not None and budget.metric is not None:
        return False  # the metric must see the engine's answers to its batches
    return request.runtime == "tensorrt"


def _hash_files(artifact: OnnxArtifact) -> None:
    with suppress(Torch2EngineError):  # `find_by_graph` hashes again, and raises it
        artifact.manifest()
