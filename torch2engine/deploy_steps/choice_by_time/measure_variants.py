"""An engine in several variants → the fastest of them: deploy() under BuildConfig(optimize="measure").

Enters: the arguments of deploy(), and deploy() itself. Leaves: the module of the fastest variant, with a table of all
times in its report. Separate because each variant takes every step of deploy(): it is compared with the model, and
kept in the cache, like any engine.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

from torch2engine.artifact.engine_cache import EngineCache, RequestRecord, hash_facts, resolve_cache
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import UnsupportedOperatorError
from torch2engine.core.time_limit import OutOfTime, TimeLimit
from torch2engine.core.tried_candidate import TriedCandidate, rank
from torch2engine.core.wording import first_line
from torch2engine.deploy_steps.capture_model_call import capture_model_call
from torch2engine.deploy_steps.choice_by_time.engine_variants import PLAIN, VARIANTS
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deploy_steps.request_facts import graph_facts, request_facts
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.made_inputs import case_name
from torch2engine.deployed.module_access import artifact_of
from torch2engine.deployed.speed_at_opt import times_side_by_side
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.exporter.export_onnx import export_onnx

__all__ = ["with_measured_variants"]

P = ParamSpec("P")
R = TypeVar("R")

_SECONDS = 1.0  # for the times of all variants together
_NOTHING = "optimize='measure' has measured nothing: only an engine that is whole, by TensorRT, has variants"
_REMEMBERED = (
    "the variant was chosen by an earlier deploy of this ONNX graph on this GPU, which took the times in `tried`"
)


def with_measured_variants(deploy: Callable[P, R]) -> Callable[P, R]:
    """Let deploy() take BuildConfig(optimize="measure").

    Args:
        deploy: the function of this name. It makes the module of each variant.
    """

    @wraps(deploy)
    def deploy_or_measure(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(kwargs.get("config"), "optimize", None) != "measure":
            return deploy(*args, **kwargs)
        bound = inspect.signature(deploy).bind(*args, **kwargs)
        bound.apply_defaults()
        return _deploy_measured(deploy, bound.arguments)

    inner: Any = deploy
    outer: Any = deploy_or_measure
    outer.__kwdefaults__ = inner.__kwdefaults__  # the same dict: a default that is changed holds for both
    return deploy_or_measure


def _deploy_measured(deploy: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Deploy the variant that an earlier deploy has chosen, or measure all and choose.

    Args:
        deploy: the function of this name.
        arguments: all of its arguments.
    """
    given = ModelAndSample.of_arguments(arguments)
    plain: dict[str, Any] = {**arguments, **vars(given)}
    if isinstance(plain["calibration"], Iterator):
        plain["calibration"] = tuple(cast("Iterator[object]", plain["calibration"]))  # every variant reads them
    plain["config"] = replace(arguments["config"], optimize="auto")
    request = DeployRequest.from_arguments(
        given,
        *(plain[name] for name in ("precision", "calibration", "tolerance", "runtime", "config", "runtime_config")),
    )
    if request.runtime != "tensorrt":
        cpu = {"runtime": request.runtime, "runtime_config": request.runtime_config.on_cpu()}  # its warning has come
        return _with_note(deploy(**{**plain, **cpu}), _NOTHING)
    report = ReportBuilder(arguments["progress"])
    try:
        with report.phase("variants"):
            measurement = _Measurement.of(request, resolve_cache(arguments["cache"]), deploy, plain)
    except UnsupportedOperatorError:
        if not plain["fallback"]:
            raise
        return _with_note(deploy(**plain), _NOTHING)
    chosen = measurement.remembered()
    if chosen is None:
        chosen = measurement.chosen(TimeLimit(plain["config"].optimize_seconds))
    chosen.report = replace(chosen.report, seconds={**report.build("").seconds, **chosen.report.seconds})
    return chosen


def _with_note(module: DeployedModule[Any], note: str) -> DeployedModule[Any]:
    module.report = replace(module.report, notes=(*module.report.notes, note))
    return module


def _choice_facts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which variants there are and how fast they are, beside the request itself, as JSON values for a key.

    Profiles that the user gave stay, even if deploy() would choose the same ones. Shared memory is no value, and makes
    no variant faster.
    """
    return {
        "variants": [variant.name for variant in VARIANTS],
        "runtime": asdict(replace(arguments["runtime_config"], shared_memory=None)),
        "has_own_profiles": arguments["profiles"] is not None,
    }


@dataclass(frozen=True, kw_only=True)
class _Measurement:
    """All variants of one engine.

    Args:
        captured: the model's call, with the plain engine's profiles.
        cache: where choices are remembered; None for nowhere.
        key: of the choice: the ONNX graph, the GPU and all options.
        engine_record: of the plain engine, by which the choice goes when the engine goes.
        deploy: the function of this name.
        arguments: of the plain engine.
    """

    captured: CapturedCall
    cache: EngineCache | None
    key: str
    engine_record: str
    deploy: Callable[..., Any]
    arguments: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        request: DeployRequest,
        cache: EngineCache | None,
        deploy: Callable[..., Any],
        arguments: Mapping[str, Any],
    ) -> _Measurement:
        """Export the model, to know its graph."""
        refittable = request.config.refittable
        with undisturbed(request.model):
            captured = capture_model_call(request)
            artifact = export_onnx(captured, refittable=refittable)
            captured = captured.with_axes_and_profiles_of(artifact)
            with torch.cuda.device(captured.target_gpu):  # request_facts reads the current GPU
                facts = {**request_facts(request, captured), **graph_facts(artifact, refittable)}
        return cls(
            captured=captured,
            cache=None if request.has_calibration else cache,  # other data would give another engine
            key=hash_facts({**facts, **_choice_facts(arguments)}),
            engine_record=hash_facts(facts),
            deploy=deploy,
            arguments=arguments,
        )

    def remembered(self) -> DeployedModule[Any] | None:
        """The variant that an earlier deploy has chosen; None if there was none."""
        record = None if self.cache is None else self.cache.read_record(self.key)
        if self.cache is None or record is None:
            return None
        module = self._deployed(str(record.findings["variant"]))
        tried = tuple(map(TriedCandidate.from_json, record.findings["tried"]))
        module.report = replace(module.report, tried=tried)
        self.cache.refresh_record(self.key)
        return _with_note(module, _REMEMBERED)

    def chosen(self, limit: TimeLimit) -> DeployedModule[Any]:
        """Make all variants, time them in turns, and remember the fastest.

        An error of a variant is noted as a reason against that variant, and is not raised: the plain engine answers in
        any case.
        """
        plain = self._deployed(PLAIN)
        if not isinstance(plain, TRTModule):  # of a model in parts
            return _with_note(plain, _NOTHING)
        modules: dict[str, DeployedModule[Any]] = {PLAIN: plain}
        left_out: list[TriedCandidate] = []
        for variant in VARIANTS:
            if not variant.suits(plain, self.arguments):
                continue
            try:
                limit.check("its build")
                modules[variant.name] = self._deployed(variant.name)
            except Exception as error:
                reason = str(error) if isinstance(error, OutOfTime) else f"{type(error).__name__}: {first_line(error)}"
                left_out.append(TriedCandidate(name=variant.name, is_chosen=False, reason=f"left out: {reason}"))
        times: dict[str, dict[str, float]] = {PLAIN: {}}
        if len(modules) > 1:
            times = times_side_by_side(modules, self._inputs(plain), _SECONDS)
        tried = [*rank(times, dict.fromkeys(times, "")), *left_out]
        name = next(one.name for one in tried if one.is_chosen)
        self._remember(name, tried)
        module = modules[name]
        module.report = replace(module.report, tried=tuple(tried))
        module.trim()  # gives back what the measurement took
        return module

    def _deployed(self, name: str) -> DeployedModule[Any]:
        """The module of a variant."""
        changes = {variant.name: variant.changes for variant in VARIANTS}.get(name)
        return self.deploy(**{**self.arguments, **({} if changes is None else changes(self.arguments))})

    def _inputs(self, module: TRTModule[Any]) -> dict[str, list[torch.Tensor]]:
        """The sample at each profile's opt, in the engine's dtypes and on its GPU."""
        inputs: dict[str, list[torch.Tensor]] = {}
        for sizes in [profile.sizes(1) for profile in artifact_of(module).profiles] or [{}]:
            pairs = zip(self.captured.sample_of_sizes(sizes), module.signature.inputs, strict=True)
            inputs[case_name(sizes) if sizes else ""] = [
                leaf.to(module.device, torch_dtype(spec.dtype)) for leaf, spec in pairs
            ]
        return inputs

    def _remember(self, name: str, tried: list[TriedCandidate]) -> None:
        engine = None if self.cache is None else self.cache.read_record(self.engine_record)
        if self.cache is not None and engine is not None:
            findings = {"variant": name, "tried": [one.to_json() for one in tried]}
            self.cache.write_record(self.key, RequestRecord(engine.engine_key, findings))
