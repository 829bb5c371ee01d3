"""A float32 `OnnxArtifact` + `Precision` → a typed or quantised one that has been judged, and what it cost.

Enters: the exported model, examples with the reference's answers, calibration data. Leaves: the graph that TensorRT
will build. Above the stages because it composes them: it lowers, judges, and where a budget allows lowers again.
"""

from __future__ import annotations

import fnmatch
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from torch import nn

from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import QUANTIZED, Budget, Precision, Tolerance
from torch2engine.core.errors import InputError, ParityError
from torch2engine.core.preprocess import ORIGIN
from torch2engine.core.progress import Progress, Reporter, reporting
from torch2engine.modules.deployed import DeployedModule, attach_model
from torch2engine.modules.judge import judge
from torch2engine.modules.onnxruntime.module import ORTModule, StrictModule
from torch2engine.onnx_graph.model_file import load_model
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.parity.compare import ParityReport
from torch2engine.precision.calibration import Metric, arrays, tensors
from torch2engine.precision.graph.account import account
from torch2engine.precision.graph.cast import cast as cast_graph
from torch2engine.precision.graph.cast import out_of_range
from torch2engine.precision.graph.outcome import PrecisionOutcome
from torch2engine.precision.graph.quantize import quantize
from torch2engine.precision.graph.ranges import absolute_maxima
from torch2engine.precision.graph.sensitivity import Mixtures, distance
from torch2engine.precision.request import as_typed, bounds_of, check_low, check_types, judged_on, retyped_signature
from torch2engine.precision.retype_weights import retyped

__all__ = ["Lowered", "lower"]

# A metric judges instead; what is not finite fails all the same.
_UNBOUNDED = Tolerance(rel_l2=1e6, max_rel=1e6, mismatch=1.0)
_NO_MORE = "lower the floor, allow more rebuilds, or ask for a higher precision"
_NAMES = {"fp16": "float16", "bf16": "bfloat16"}
_ROOM = {"fp16": " with room to spare", "bf16": ""}
_LOG = logging.getLogger("torch2engine.precision")

R = TypeVar("R", bound=DeployedModule[Any])
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Lowered:
    """A graph in the precision that was asked.

    Args:
        artifact: the graph.
        examples: what it was judged on, in its own dtypes.
        tolerance: what the engine must hold as well; without bounds where a metric judges.
        outcome: which nodes are low, and why others are not; None for a graph that was left as it is.
        reports: PyTorch against it, rounded after every operator, and against ONNX Runtime where that is to answer.
        notes: what a user should know.
        metric: of whatever is deployed in its place; None without one.
    """

    artifact: OnnxArtifact
    examples: Sequence[ParityCase]
    tolerance: Tolerance | None
    outcome: PrecisionOutcome | None = None
    reports: tuple[ParityReport, ...] = ()
    notes: tuple[str, ...] = ()
    metric: Metric | None = None

    def own(self, module: R, model: nn.Module) -> R:
        """Settle what a module can be refitted from, if it was asked for so.

        Raises:
            RefitError: not all of its weights follow from the model.
        """
        if WEIGHTS in self.artifact.files:
            bounds = None if self.metric is not None else self.tolerance  # a metric leaves none
            attach_model(module, model, [(example.name, example.inputs) for example in self.examples], bounds)
        return module

    def hold(self, module: DeployedModule[Any]) -> tuple[str, ...]:
        """Ask the metric, if there is one, of the deployed module too; a sentence on it.

        Raises:
            ParityError: it is below the floor.
        """
        if self.metric is None:
            return ()
        value = self.metric(module)
        told = f"Budget.metric of {module.runtime} is {value:.4g}, its floor {self.metric.floor:.4g}"
        if not value >= self.metric.floor:
            raise ParityError(f"parity, {told}", report=self.reports[0], fix="ask for a higher precision")
        return (told,)


def lower(
    artifact: OnnxArtifact,
    precision: Precision,
    examples: Sequence[ParityCase],
    calibration: Iterable[Any] | None = None,
    *,
    tolerance: Tolerance | None = None,
    flavour: str | None = None,
    progress: Progress = None,
) -> Lowered:
    """Type or quantise a graph, and judge what came out.

    Args:
        artifact: in float32.
        precision: what is asked, and what it may cost.
        examples: from `make_parity_cases`; also the calibration data where there is no other.
        calibration: inputs in the form of sample_input; read once, or for Budget.metric once more for each graph.
        tolerance: when the graph counts as equal; by default `Tolerance.default` of the precision.
        flavour: that will build it, for what that can't; None: ONNX Runtime answers.
        progress: as for `build`; told of every batch of `calibration`, in a phase of that name.

    Returns:
        the first graph that holds the budget, or the tolerance where there is no budget; what was given for "fp32" and
        "tf32", which are the builder's business.

    Raises:
        InputError: a model that is not in float32, a path in keep_fp32 that no module has, or calibration data that
            does not fit.
        InstallationError: no ModelOpt.
        UnsupportedOperatorError: the flavour can't build such a graph.
        ExportError: ModelOpt failed.
        PrecisionError: nothing would compute in the precision, not even where a budget holds.
        ParityError: the graph does not hold the tolerance, or no graph the budget.
        BuildError: progress returned False.
    """
    if not precision.changes_graph:
        return Lowered(artifact, examples, tolerance)
    own = artifact.precision in QUANTIZED and artifact.precision == precision.dtype
    if artifact.precision not in ("fp32", "tf32") and not own:
        raise InputError(
            "precision",
            got=f"{precision.dtype!r} for a model that computes in {artifact.precision} itself",
            allowed="a float32 model",
            fix="deploy model.float(), or leave precision out",
        )
    with reporting(progress) as report:
        told = Reporter("calibration", report)
        lowered = _Lowering(artifact, precision, examples, calibration, tolerance, flavour, told)()
    if flavour is not None:
        return lowered
    # Its own float16 is not the strict judge's, and it lacks some operators in it.
    own_answers = judge(ORTModule(lowered.artifact), lowered.examples, lowered.tolerance).raise_if_failed()
    return replace(lowered, reports=(*lowered.reports, own_answers))


def _length(batches: Iterable[Any]) -> int:
    """How many there are; 0 where nobody knows."""
    try:
        return length_hint(batches)
    except Exception:  # a user's own, and what progress shows is no reason to fail
        return 0


class _Lowering:
    """One call of `lower`."""

    def __init__(
        self,
        artifact: OnnxArtifact,
        precision: Precision,
        examples: Sequence[ParityCase],
        calibration: Iterable[Any] | None,
        tolerance: Tolerance | None,
        flavour: str | None,
        report: Reporter,
    ) -> None:
        self._artifact, self._precision, self._flavour = artifact, precision, flavour
        self._report = report
        self._examples, self._calibration = judged_on(examples, precision), calibration
        self._bounds = bounds_of(precision, tolerance)
        budget = precision.budget
        self._metric: Metric | None = None
        if budget is not None and budget.metric is not None and budget.floor is not None:
            assert calibration is not None, "check_calibration has seen to it"
            self._metric = Metric(budget.metric, budget.floor, artifact.signature, calibration)
            self._bounds = _UNBOUNDED
        self._of_node = node_modules(load_model(artifact.onnx_path))
        self._attempts: list[str] = []
        self._errors: dict[str, float] | None = None
        self._maxima: dict[str, float] = {}

    def __call__(self) -> Lowered:
        reasons = self._asked()
        check_types(self._artifact.onnx_path, self._precision)
        if self._precision.dtype in ("fp16", "bf16"):
            self._maxima = absolute_maxima(self._artifact.onnx_path, self._batches())
            dtype = self._precision.dtype
            for name, largest in self._too_large().items():
                reasons.setdefault(name, f"reaches {largest:.3g}, which {_NAMES[dtype]} can't hold{_ROOM[dtype]}")
        lowered = self._made(reasons)
        check_low(lowered.outcome, self._precision)
        budget = self._precision.budget
        if budget is None:
            lowered.reports[0].raise_if_failed()
            return lowered
        return self._search(lowered, reasons, budget)

    def _too_large(self) -> dict[str, float]:
        """Nodes out of the type's range: name -> the largest value in the node's module."""
        found = out_of_range(self._artifact.onnx_path, self._precision.dtype, self._maxima)
        of_module: dict[str, float] = {}
        for name, largest in found.items():
            module = self._of_node[name]
            of_module[module] = max(largest, of_module.get(module, 0.0))
        return {name: of_module[self._of_node[name]] for name in found}

    def _asked(self) -> dict[str, str]:
        """Nodes of modules that keep_fp32 names, and of `preprocess`: name -> reason.

        Raises:
            InputError: a path that fits no module.
        """
        # A mean rounded to 16 bits is wrong in every pixel alike.
        reasons = {name: "makes the input of bytes" for name, module in self._of_node.items() if module == ORIGIN}
        known = sorted(set(self._of_node.values()))
        for pattern in self._precision.keep_fp32:
            fitting = {m for m in known if fnmatch.fnmatchcase(m, pattern) or fnmatch.fnmatchcase(m, f"{pattern}.*")}
            if not fitting:
                raise InputError(
                    "Precision.keep_fp32",
                    got=f"no module is called {pattern!r}",
                    allowed="the graph has " + ", ".join(repr(module) for module in known[:20]),
                )
            reasons |= {name: "asked by keep_fp32" for name, module in self._of_node.items() if module in fitting}
        return reasons

    def _batches(self) -> Iterator[Arrays]:
        """Calibration data as arrays by input name, one batch at a time."""
        signature = self._artifact.signature
        if self._calibration is None:
            yield from self._own_batches()
            return
        known, done = _length(self._calibration), 0
        for done, batch in enumerate(self._calibration, 1):
            self._report("calibration", done - 1, max(known, done))
            leaves = tensors(signature, batch)
            signature.resolve([leaf.shape for leaf in leaves])
            yield arrays(self._artifact.signature, leaves)
        self._report("calibration", done, done)

    def _own_batches(self) -> Iterator[Arrays]:
        for example in self._examples:
            yield arrays(self._artifact.signature, example.inputs)

    def _made(self, reasons: Mapping[str, str]) -> Lowered:
        """Lower all but these nodes, and judge."""
        precision, source = self._precision, self._artifact.onnx_path
        owner = scratch_folder()
        target = Path(owner.path) / "model.onnx"
        notes: tuple[str, ...] = ()
        if precision.dtype in QUANTIZED or precision.weights:
            # Four bits are a matter of the weights: what is too large for float16 may have them all the same.
            keep = tuple(self._asked() if precision.weights else reasons)
            notes = quantize(source, target, precision, self._batches(), keep=keep, flavour=self._flavour)
            source = target
        if precision.dtype in ("fp16", "bf16"):
            cast_graph(source, target, precision.dtype, keep=tuple(reasons), low_io=precision.low_io)
        if WEIGHTS in self._artifact.files:
            program = WeightProgram.from_json(self._artifact.read(WEIGHTS))
            write_file(target.with_name(WEIGHTS), retyped(program, self._artifact.onnx_path, target).to_json())
        artifact = self._artifact.replace(
            folder=owner.path,
            owner=owner,
            signature=retyped_signature(self._artifact.signature, precision),
            precision=precision.dtype,
        )
        outcome = account(load_model(target), precision.dtype, reasons, self._attempts, self._errors)
        examples = [as_typed(example, artifact.signature, precision.dtype) for example in self._examples]
        parity = judge(StrictModule(artifact), examples, self._bounds)
        return Lowered(artifact, examples, self._bounds, outcome, (parity,), notes, self._metric)

    # Budget

    def _search(self, lowered: Lowered, reasons: dict[str, str], budget: Budget) -> Lowered:
        """Put the worst modules back to float32 until the budget holds.

        Raises:
            PrecisionError: it holds in float32 alone.
            ParityError: it does not after all rebuilds.
        """
        order: list[str] | None = None
        back, step = 0, 1
        for attempt in range(1, budget.rebuilds + 1):
            holds, told = self._verdict(lowered)
            self._tell(f"graph {attempt}: {told}" + (", which holds the budget" if holds else ""))
            if holds:
                check_low(lowered.outcome, self._precision)  # or a budget that only float32 holds would pass as low
                assert lowered.outcome is not None, "every graph made here has one"
                return replace(lowered, outcome=replace(lowered.outcome, attempts=tuple(self._attempts)))
            if attempt == budget.rebuilds:
                break
            example = self._hardest(lowered)
            if order is None:
                order = self._worst(reasons, example)
            if back >= len(order):
                self._tell("every module that matters is in float32 already")
                break
            following = max(self._enough(order, back, reasons, example), min(back + step, len(order)))
            step *= 2
            for module in order[back:following]:
                error = 0.0 if self._errors is None else self._errors[module]
                self._tell(f"'{module}' goes back to float32: alone in {self._precision.dtype} it costs {error:.2e}")
                for name, owner in self._of_node.items():
                    if owner == module:
                        reasons.setdefault(name, f"costs {error:.2e} alone, more than the budget has")
            back = following
            lowered = self._made(reasons)
        tried = replace(lowered.reports[0], notes=(*lowered.reports[0].notes, *self._attempts))
        tried.raise_if_failed()
        raise ParityError(f"parity, {self._attempts[-1]}", report=tried, fix=_NO_MORE)

    def _hardest(self, lowered: Lowered) -> Arrays:
        """The example that the graph answered worst."""
        worst = lowered.reports[0].worst
        case = self._examples[0].name if worst is None else worst.case
        return arrays(
            self._artifact.signature, next(example for example in self._examples if example.name == case).inputs
        )

    def _tell(self, text: str) -> None:
        self._attempts.append(text)
        _LOG.info(text)

    def _verdict(self, lowered: Lowered) -> tuple[bool, str]:
        """Whether a graph holds the budget, and in which words."""
        if self._metric is not None:
            value = self._metric(StrictModule(lowered.artifact))
            finite = all(row.nonfinite_candidate <= row.nonfinite_reference for row in lowered.reports[0].rows)
            return finite and value >= self._metric.floor, f"metric {value:.4g}, floor {self._metric.floor:.4g}"
        worst = lowered.reports[0].worst
        error = math.nan if worst is None else worst.rel_l2
        return lowered.reports[0].passed, f"rel-l2 {error:.2e}, bound {self._bounds.rel_l2:.2e}"

    def _mixtures(self, reasons: Mapping[str, str]) -> Mixtures:
        source, dtype = self._artifact.onnx_path, self._precision.dtype
        if not self._maxima:  # of a quantised precision, for which check_calibration wants data that can be read again
            self._maxima = absolute_maxima(source, self._batches())
        return Mixtures(source, dtype, tuple(reasons), self._maxima)

    def _worst(self, reasons: Mapping[str, str], example: Arrays) -> list[str]:
        """Modules that cost anything, the worst first."""
        with self._mixtures(reasons) as mixtures:
            self._errors = mixtures.errors([example])
        return [module for module, error in self._errors.items() if error > 0]

    def _enough(self, order: Sequence[str], back: int, reasons: Mapping[str, str], example: Arrays) -> int:
        """How many of the worst modules to put back: one more, or as many as the bound seems to need."""
        if self._metric is not None:
            return back + 1
        with self._mixtures(reasons) as mixtures:
            exact = mixtures(example, ())
            for count in range(back + 1, len(order) + 1):
                low = set(mixtures.modules) - set(order[:count])
                if distance(exact, mixtures(example, low)) <= self._bounds.rel_l2:
                    return count
        return len(order)
