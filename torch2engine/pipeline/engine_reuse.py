"""The engine of an earlier deploy() is found again, so that export, checks and build are not repeated.

Enters: a request, and its cache. Leaves: an engine that was compared with the model anew, or None; then deploy() takes
every step. Separate because a shortcut is right only if it finds and accepts what all steps would have built.

deploy() can find an earlier engine at three points, and this class does the first two:

1. `reuse_by_cache_key`, before the export: the user's cache_key, the weights and all other arguments are the same.
2. `reuse_by_graph`, after the export: the ONNX graph and all other arguments are the same.
3. `EngineRequest.load_or_build`, before the build: everything that TensorRT reads is the same.

The first two have a request key, which hashes what deploy() was given. Its record in the cache names the engine key,
which hashes what TensorRT was given. The third has the engine key itself.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import EngineCache, RequestRecord, hash_facts
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.engine_request import EngineRequest, current_driver
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.core.errors import InputError, InstallationError, Torch2EngineError
from torch2engine.modules.trt.trt_module import TRTModule
from torch2engine.pipeline.accept import EngineCandidate, accept, attach_report_and_trim
from torch2engine.pipeline.deploy_report import ReportBuilder
from torch2engine.pipeline.reference_answers import ReferenceAnswers, answer_parity_cases
from torch2engine.pipeline.request import DeployRequest
from torch2engine.pipeline.request_facts import graph_facts, incomparable_attribute, model_facts, request_facts
from torch2engine.pipeline.user_warning import warn_user
from torch2engine.precision.graph.precision_outcome import PrecisionOutcome

__all__ = ["EngineReuse"]

_FROM_CACHE = "engine and graph were made before and come from the cache; the graph was compared with ONNX Runtime then"


class EngineReuse:
    """Finds the engine of an earlier deploy with the same facts, and remembers a new one for later deploys.

    Args:
        request: the checked arguments of deploy().
        cache: where earlier engines may be, and where a new one goes; None for nowhere.
        cache_key: the caller's name for the model's code and calibration data, or None.
        report: takes the seconds of a search, and holds the facts about a new engine. A reused engine gets a copy of
            it, continued.
    """

    def __init__(
        self, request: DeployRequest, cache: EngineCache | None, cache_key: str | None, report: ReportBuilder
    ) -> None:
        self._request = request
        self._report = report
        self.cache = cache
        self._searched_cache = cache if _may_reuse(request) else None
        self._cache_key = cache_key
        self._keys: list[str] = []
        self._hashing: threading.Thread | None = None

    def reuse_by_cache_key(self, captured: CapturedCall) -> TRTModule | None:
        """Put the engine of an earlier deploy with the same cache_key in the model's place, without an export.

        Call it in `undisturbed`: the model answers the parity cases.

        Args:
            captured: the model's call.

        Returns:
            a module with its report, or None.
        """
        if self._searched_cache is None or self._cache_key is None:
            return None
        with self._report.phase("recall"):
            facts = model_facts(self._request, self._cache_key)
            if facts is None:
                if reason := incomparable_attribute(self._request.model):
                    warn_user(f"cache_key is not used, and the model is deployed anew: {reason}")
                return None
            earlier = self._find(self._searched_cache, facts, captured)
        if earlier is None:
            return None
        captured = captured.with_derived_axes(earlier.engine.signature, tuple(earlier.engine.profiles))
        with self._report.phase("reference"):
            reference = answer_parity_cases(captured, self._request.candidate_precisions(captured))
        return self._accept(self._searched_cache, earlier, captured, reference)

    def start_hashing_in_thread(self, artifact: OnnxArtifact) -> None:
        """Hash an exported model's files in a thread, while the GPU answers the parity cases."""
        if self._searched_cache is None or self._request.has_calibration or self._request.config.refittable:
            return
        self._hashing = threading.Thread(target=_hash_files, args=(artifact,), name="torch2engine hash", daemon=True)
        self._hashing.start()

    def reuse_by_graph(
        self,
        artifact: OnnxArtifact,
        captured: CapturedCall,
        reference: ReferenceAnswers,
    ) -> TRTModule | None:
        """Put the engine of an earlier deploy with the same ONNX graph, source lines included, in the model's place.

        Args:
            artifact: the exported model; the values of weights that a refit replaces don't matter.
            captured: the model's call.
            reference: the model's answers, with which the engine is compared.

        Returns:
            a module with its report, or None.
        """
        if self._searched_cache is None or self._request.has_calibration:  # other data than before, perhaps
            return None
        with self._report.phase("recall"):
            if self._hashing is not None:
                self._hashing.join()
            facts = graph_facts(artifact, self._request.config.refittable)
            earlier = self._find(self._searched_cache, facts, captured)
        return None if earlier is None else self._accept(self._searched_cache, earlier, captured, reference)

    def store_and_record(self, engine_request: EngineRequest, engine: EngineArtifact, module: TRTModule) -> None:
        """Store an accepted engine, and record it for later deploys with the same facts.

        Args:
            engine_request: stores the engine.
            engine: as it was loaded or built.
            module: the engine with the weights and the compiled kernels that it has now.
        """
        self._report.add_notes(engine_request.notes)  # whether the engine comes from the cache
        stored = module.compiled()
        if self._request.runtime_config.kernel_specialization != "none":
            # A later deploy may not want kernels that were compiled for single shapes.
            stored = stored.with_runtime_cache(engine.read_runtime_cache())
        engine_request.store(stored)
        if self._searched_cache is not None:
            for key in self._keys:
                self._searched_cache.write_record(
                    key, RequestRecord(engine_request.cache_key, self._report.reusable_findings())
                )

    def _find(self, cache: EngineCache, facts: Mapping[str, Any], captured: CapturedCall) -> _EarlierEngine | None:
        """The engine that was recorded for the request with these facts; `store_and_record` will use the same key."""
        with torch.cuda.device(captured.target_gpu):  # build_environment reads the current GPU
            key = hash_facts({**request_facts(self._request, captured), **facts})
            self._keys.append(key)
            record = cache.read_record(key)
            engine = None if record is None else cache.take(record.engine_key)
            if (
                record is None
                or engine is None
                or engine.onnx_path is None
                or engine.hardware.driver != current_driver()
            ):
                return None
        needs_kernels = (
            self._request.runtime_config.kernel_specialization == "none" and engine.hardware.flavour == "tensorrt_rtx"
        )
        if needs_kernels and not engine.read_runtime_cache():
            return None  # all steps together compile kernels and store them
        return _EarlierEngine(key, engine, record.facts)

    def _accept(
        self,
        cache: EngineCache,
        earlier: _EarlierEngine,
        captured: CapturedCall,
        reference: ReferenceAnswers,
    ) -> TRTModule | None:
        """Put an earlier engine in the model's place, if it answers like the model; else remove its record and warn."""
        report = self._report.copy()
        report.add_reusable_findings(earlier.facts)
        try:
            with report.phase("parity"):
                candidate = EngineCandidate.of_earlier_deploy(
                    earlier.engine, earlier.lowered_to, self._request, reference
                )
                module = accept(candidate, self._request, captured.target_gpu, report)
        except (InputError, InstallationError):
            raise
        except Torch2EngineError as error:
            cache.remove_record(earlier.key)
            warn_user(
                f"an engine that was found for this request is not taken, and the model is deployed anew: {error}"
            )
            return None
        cache.refresh_record(earlier.key)
        report.add_notes([_FROM_CACHE])
        return attach_report_and_trim(module, report)


@dataclass(frozen=True)
class _EarlierEngine:
    """An engine of an earlier deploy.

    Args:
        key: of the cache's record that led to it.
        engine: with its ONNX model.
        facts: the `reusable_findings` of the earlier deploy's report.
    """

    key: str
    engine: EngineArtifact
    facts: Mapping[str, Any]

    @property
    def lowered_to(self) -> str | None:
        """The precision that the graph was lowered to; None where it was not lowered."""
        outcome = self.facts["outcome"]
        return None if outcome is None else PrecisionOutcome.from_json(outcome).dtype


def _may_reuse(request: DeployRequest) -> bool:
    """Whether an earlier engine may answer; False where every deploy must take all steps."""
    budget = request.precision.budget
    if budget is not None and budget.metric is not None:
        return False  # the metric must see the engine's answers to its batches
    return request.runtime == "tensorrt"


def _hash_files(artifact: OnnxArtifact) -> None:
    with suppress(Torch2EngineError):  # `reuse_by_graph` hashes again, and raises it
        artifact.manifest()
