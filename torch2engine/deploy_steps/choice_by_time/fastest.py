"""A deployed engine and its model → whichever answers fastest: the engine, or PyTorch in one of its forms.

Enters: the arguments of deploy(runtime="fastest"), and deploy() itself. Leaves: the engine's module, or a `LiveModule`
that was compared with the model in the same way. A table in the report has all times. Separate because it begins where
deploy() ends: whatever deploy() made is timed beside PyTorch.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from torch2engine.capture.fingerprint import fingerprints
from torch2engine.capture.live_parameters import find_live_parameters
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.process_state import restored_random_state
from torch2engine.capture.reference import Reference
from torch2engine.capture.shared_copy import SharedCopy
from torch2engine.capture.signature import capture_call
from torch2engine.capture.torch_types import dtype_name
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import BuildConfig, Precision, Tolerances
from torch2engine.core.precisions import DEFAULT_PRECISION, PRECISION_TYPES
from torch2engine.core.time_limit import OutOfTime, TimeLimit
from torch2engine.core.tried_candidate import TriedCandidate, rank
from torch2engine.core.wording import first_line
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.reference_answers import ReferenceAnswers, answer_parity_cases
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.explanation import GraphPartRecord
from torch2engine.deployed.judge import ENGINE_REPEATS, judge
from torch2engine.deployed.live.live_module import LiveModule
from torch2engine.deployed.live.live_program import LIVE_PROGRAMS, LiveProgram, MakeProgram
from torch2engine.deployed.made_inputs import case_name
from torch2engine.deployed.module_access import artifact_of, prove_split_axes, runtime_kind
from torch2engine.deployed.speed_at_opt import cases_at_opt, times_side_by_side
from torch2engine.parity.parity_report import ParityReport

__all__ = ["Race", "with_fastest"]

P = ParamSpec("P")
R = TypeVar("R")

_SECONDS = 1.0  # for the times of all candidates together, on a GPU
_NOTE = (
    "{name} answers, since it is faster than the engine: it computes with the model's own weights, follows new values "
    "of them, and can't be saved"
)


def with_fastest(deploy: Callable[P, R]) -> Callable[P, R | LiveModule[Any]]:
    """Let deploy() take runtime="fastest".

    Args:
        deploy: the function of this name. It makes the engine's module.

    Returns:
        the same function, which may return a `LiveModule` under runtime="fastest".
    """

    @wraps(deploy)
    def deploy_or_race(*args: P.args, **kwargs: P.kwargs) -> R | LiveModule[Any]:
        if kwargs.get("runtime") != "fastest":
            return deploy(*args, **kwargs)
        bound = inspect.signature(deploy).bind(*args, **kwargs)
        bound.apply_defaults()
        return _deploy_fastest(deploy, bound.arguments)

    inner: Any = deploy
    outer: Any = deploy_or_race
    outer.__kwdefaults__ = inner.__kwdefaults__  # the same dict: a default that is changed holds for both
    return deploy_or_race


def _deploy_fastest(deploy: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Deploy an engine, and return it or PyTorch.

    Args:
        deploy: the function of this name.
        arguments: all of its arguments.
    """
    given = ModelAndSample.of_arguments(arguments)
    module: DeployedModule[Any] = deploy(**{**arguments, **vars(given), "runtime": "auto"})
    report = ReportBuilder(arguments["progress"])
    with report.phase("fastest"), restored_random_state():
        winner = Race.of(module, unwrap(given.model), given, arguments).run(LIVE_PROGRAMS)
    winner.report = replace(winner.report, seconds={**winner.report.seconds, **report.build("").seconds})
    return winner


@dataclass(frozen=True)
class _Entry:
    """One candidate.

    Args:
        module: answers like the model.
        parity: shows it; None for the engine, whose report has it.
        remark: a clause about how it runs, or "".
    """

    module: DeployedModule[Any]
    parity: ParityReport | None = None
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Race:
    """An engine and the ways to run its model in PyTorch, all under one contract.

    Args:
        engine: the module that deploy() made.
        model: the user's, below torch's wrappers.
        precision: the one that the model computes in.
        answers: the model's, to all parity cases.
        cases: those that are timed, by their sizes in words.
        tolerance: as deploy() was given it.
        is_exact: whether float32 must be computed in float32.
        limit: after which torch.compile begins nothing more.
        obstacle: why PyTorch can't take part at all, or "".
    """

    engine: DeployedModule[Any]
    model: nn.Module
    precision: str
    answers: ReferenceAnswers
    cases: Mapping[str, ParityCase]
    tolerance: Tolerances | None
    is_exact: bool
    limit: TimeLimit
    obstacle: str

    @classmethod
    def of(
        cls, engine: DeployedModule[Any], model: nn.Module, given: ModelAndSample, arguments: Mapping[str, Any]
    ) -> Race:
        """Answer the parity cases by the model, and see whether PyTorch can take part."""
        config: BuildConfig = arguments["config"]
        artifact = artifact_of(engine)
        live = find_live_parameters(model, given.live_parameters)
        with undisturbed(model):
            captured = capture_call(
                model,
                given.sample_input,
                given.dynamic_axes,
                given.profiles,
                given.preprocess,
                given.examples,
                config.mutations,
                live,
            ).with_axes_and_profiles_of(artifact)
            answers = answer_parity_cases(captured, (captured.precision,))
        cases = answers.parity_cases
        first = {case_name(engine.signature.resolve([leaf.shape for leaf in cases[0].inputs])): cases[0]}
        # The switches of the CPU stay as they are, as for the engine there.
        requested = PRECISION_TYPES[Precision.of(arguments["precision"]).dtype]
        is_exact = captured.precision == DEFAULT_PRECISION and not requested.uses_tf32
        return cls(
            engine=engine,
            model=model,
            precision=captured.precision,
            answers=answers,
            cases=cases_at_opt(engine.signature, artifact.profiles, cases) or first,
            tolerance=arguments["tolerance"],
            is_exact=is_exact and cases[0].inputs[0].is_cuda,
            limit=TimeLimit(config.optimize_seconds),
            obstacle=_obstacle(engine, model, cases[0]),
        )

    def prepared(self, name: str, make: MakeProgram) -> _Entry:
        """Make a module that runs the model in one of PyTorch's forms, and compare it with the model like an engine.

        Args:
            name: of the form.
            make: what makes it.

        Raises:
            Exception: whatever makes this form impossible.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers, about themselves
            return self._compared(name, make)

    def _compared(self, name: str, make: MakeProgram) -> _Entry:
        weights = SharedCopy(self.model)
        program = LiveProgram(
            title=name,
            weights=weights,
            call=make(weights.module, self.limit),
            device=self.engine.device or torch.device("cpu"),
            is_exact=self.is_exact,
            runtime_kind=runtime_kind(self.engine),
        )
        artifact = artifact_of(self.engine).replace(precision=self.precision)
        config = self.engine.runtime_config
        reference = self.model if config.out_of_range == "eager" else None
        module = LiveModule(artifact, program, self.model, runtime_config=config, reference=reference)
        remark = module.prepare([case.inputs for case in self.cases.values()])
        parity_cases = self.answers.parity_cases
        parity = judge(module, parity_cases, self.tolerance, self.answers.notes, ENGINE_REPEATS)
        parity.raise_if_failed()
        prove_split_axes(module, [case.inputs for case in parity_cases], self.tolerance)
        return _Entry(module, parity, remark)

    def run(self, programs: Mapping[str, MakeProgram]) -> DeployedModule[Any]:
        """Prepare all candidates, time them in turns, and return the fastest, with its report.

        An error of a candidate is noted as a reason against that candidate, and is not raised: the engine answers in
        any case.

        Args:
            programs: name -> what makes this form of the model.
        """
        entries = {self.engine.runtime: _Entry(self.engine)}
        left_out: list[TriedCandidate] = []
        for name, make in programs.items():
            reason = self.obstacle
            if not reason:
                try:
                    entries[name] = self.prepared(name, make)
                    continue
                except Exception as error:
                    reason = _reason(error)
            left_out.append(TriedCandidate(name=name, is_chosen=False, reason=f"left out: {reason}"))
        self.limit.lift()
        inputs = {case: parity_case.inputs for case, parity_case in self.cases.items()}
        modules = {name: entry.module for name, entry in entries.items()}
        times: dict[str, dict[str, float]] = {self.engine.runtime: {}}
        if len(modules) > 1:
            times = times_side_by_side(modules, inputs, _SECONDS)
        tried = [*rank(times, {name: entry.remark for name, entry in entries.items()}), *left_out]
        chosen = next(one.name for one in tried if one.is_chosen)
        return self._with_report(entries[chosen], tried)

    def _with_report(self, entry: _Entry, tried: Sequence[TriedCandidate]) -> DeployedModule[Any]:
        """Give the winner its report: what deploy() found, without what is true of the engine alone."""
        module = entry.module
        report = replace(self.engine.report, tried=(*self.engine.report.tried, *tried))
        if entry.parity is None:
            module.trim()  # gives back what the race took
        else:
            report = replace(
                report,
                parity=(*report.parity, entry.parity),
                precision=self.precision,
                memory_bytes=0,
                model_bytes=0,
                notes=(*report.notes, _NOTE.format(name=module.runtime)),
                lowering=None,
                computed=None,
                findings=(),
                parts=(GraphPartRecord(module.runtime, 0, ""),),
            )
        module.report = report
        return module


def _obstacle(engine: DeployedModule[Any], model: nn.Module, case: ParityCase) -> str:
    """Why PyTorch can't answer in an engine's place, whatever its form; "" if it can."""
    if engine.signature.live_inputs:
        return "live parameters are inputs of an engine alone"
    tensors = [*model.parameters(), *model.buffers(), *case.inputs]
    elsewhere = sorted({str(tensor.device) for tensor in tensors if tensor.device != engine.device})
    if elsewhere:
        return f"model or sample on {' and '.join(elsewhere)}, the engine on {engine.device}"
    for spec, leaf in zip(engine.signature.inputs, case.inputs, strict=True):
        if spec.dtype != dtype_name(leaf.dtype):
            return f"the engine's input '{spec.name}' is {spec.dtype}, the model's {dtype_name(leaf.dtype)}"
    try:
        weights = SharedCopy(model)
        with undisturbed(model, is_exact=False), _calls_of_submodules(model) as called:  # puts back what a call writes
            before = fingerprints(_plain_buffers(model))
            Reference.for_signature(weights.module, engine.signature)(case.inputs)
            after = fingerprints(_plain_buffers(model))
        written = [path for path, value in before.items() if after[path] != value]
        if called:  # through a function that holds the model: a copy would depend on the flags that others set there
            return f"a copy of it calls {type(called[0]).__name__} of the model itself"
    except Exception as error:
        return _reason(error)
    return f"its forward writes into {', '.join(written)}" if written else ""


@contextmanager
def _calls_of_submodules(model: nn.Module) -> Generator[list[nn.Module]]:
    """Collect the modules in a model that are called meanwhile."""
    called: list[nn.Module] = []

    def note(module: nn.Module, args: object) -> None:
        called.append(module)

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _plain_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {path: tensor for path, tensor in model.named_buffers() if tensor.layout is torch.strided}


def _reason(error: Exception) -> str:
    cause = getattr(error, "inner_exception", error)  # of Dynamo, around a backend's
    return f"{cause}" if isinstance(cause, OutOfTime) else f"{type(cause).__name__}: {first_line(cause)}"
