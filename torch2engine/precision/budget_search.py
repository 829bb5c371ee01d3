"""A lowered model that loses too much accuracy + a budget → one within the budget.

Enters: the first lowered model, and the means to make others. Leaves: the first one within the budget, with a list of
what was tried. Separate because without a budget nothing is searched.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch2engine.core.config import Budget
from torch2engine.core.errors import ParityError
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.precision.calibration import Arrays, named_arrays
from torch2engine.precision.graph.mixed_precision import MixedPrecisionModel, relative_error
from torch2engine.precision.lower_graph import GraphLowering
from torch2engine.precision.lowered_model import LoweredModel
from torch2engine.precision.validate import require_lowered_nodes

__all__ = ["BudgetSearch"]

_FIX = "lower the floor, allow more rebuilds, or ask for a higher precision"
_logger = logging.getLogger("torch2engine.precision")


@dataclass(frozen=True)
class _Verdict:
    """Whether a lowered model holds the budget, and the figures as a sentence."""

    holds: bool
    figures: str


class BudgetSearch:
    """Puts modules back to float32, the worst first, until the budget holds.

    Args:
        lowering: makes lowered graphs.
        budget: what they may cost.
        float32_reasons: nodes that stay in float32 in any case -> why.
    """

    def __init__(self, lowering: GraphLowering, budget: Budget, float32_reasons: Mapping[str, str]) -> None:
        self._lowering = lowering
        self._budget = budget
        self._float32_reasons = dict(float32_reasons)
        self._attempts: list[str] = []
        self._module_errors: dict[str, float] | None = None  # of each module if it alone is low, the largest first
        self._float32_count = 0  # the number of worst modules that are in float32 by now
        self._least_step = 1  # at least this many go back next; it doubles, since each graph costs minutes

    def run(self, lowered: LoweredModel) -> LoweredModel:
        """Judge the first lowered model and its successors.

        Raises:
            PrecisionError: the budget holds in float32 alone.
            ParityError: it does not hold after all rebuilds.
        """
        for number in range(1, self._budget.rebuilds + 1):
            verdict = self._judge(lowered)
            self._record(f"graph {number}: {verdict.figures}" + (", which holds the budget" if verdict.holds else ""))
            if verdict.holds:
                return self._with_account(lowered)
            if number == self._budget.rebuilds:
                break
            modules = self._next_modules(lowered)
            if not modules:
                self._record("every module that matters is in float32 already")
                break
            self._put_back(modules)
            lowered = self._lowering.make(self._float32_reasons)
        parity = lowered.reports[0]
        parity = replace(parity, notes=(*parity.notes, *self._attempts))
        parity.raise_if_failed()
        raise ParityError(
            "parity", report=parity, got=str(self._attempts[-1]), allowed="answers within the budget", fix=_FIX
        )

    def _judge(self, lowered: LoweredModel) -> _Verdict:
        metric = self._lowering.metric
        parity = lowered.reports[0]
        if metric is not None:
            value = metric.mean(ORTModule(lowered.artifact))
            is_finite = all(row.nonfinite_candidate <= row.nonfinite_reference for row in parity.rows)
            return _Verdict(is_finite and value >= metric.floor, f"metric {value:.4g}, floor {metric.floor:.4g}")
        error = math.nan if parity.worst is None else parity.worst.rel_l2
        return _Verdict(parity.passed, f"rel-l2 {error:.2e}, bound {_bound(lowered):.2e}")

    def _with_account(self, lowered: LoweredModel) -> LoweredModel:
        """Add what the search tried to the model's outcome."""
        # A budget that only float32 holds is no success.
        require_lowered_nodes(lowered.outcome, self._lowering.precision)
        assert lowered.outcome is not None, "every graph made here has one"
        outcome = replace(lowered.outcome, attempts=tuple(self._attempts), errors=self._module_errors)
        return replace(lowered, outcome=outcome)

    def _hardest_inputs(self, lowered: LoweredModel) -> Arrays:
        """Give the inputs of the case that the lowered model answered worst."""
        worst = lowered.reports[0].worst
        cases = self._lowering.cases
        name = cases[0].name if worst is None else worst.case
        case = next(case for case in cases if case.name == name)
        return named_arrays(self._lowering.artifact.signature, case.inputs)

    def _next_modules(self, lowered: LoweredModel) -> Sequence[str]:
        """Choose the modules that go back to float32 next; none if all that matter are in float32."""
        inputs = self._hardest_inputs(lowered)
        if self._module_errors is None:
            with self._mixed_precision_model() as model:
                self._module_errors = model.module_errors([inputs])
        ranking = [module for module, error in self._module_errors.items() if error > 0]
        start = self._float32_count
        if start >= len(ranking):
            return ()
        needed = self._needed_count(ranking, inputs, _bound(lowered))
        self._float32_count = max(needed, min(start + self._least_step, len(ranking)))
        self._least_step *= 2
        return ranking[start : self._float32_count]

    def _needed_count(self, ranking: Sequence[str], inputs: Arrays, bound: float) -> int:
        """Find how many of the worst modules must be in float32: one more, or as many as the bound probably needs."""
        if self._lowering.metric is not None:
            return self._float32_count + 1
        with self._mixed_precision_model() as model:
            exact = model(inputs, ())
            for count in range(self._float32_count + 1, len(ranking) + 1):
                low_modules = set(model.modules) - set(ranking[:count])
                if relative_error(exact, model(inputs, low_modules)) <= bound:
                    return count
        return len(ranking)

    def _mixed_precision_model(self) -> MixedPrecisionModel:
        lowering = self._lowering
        return MixedPrecisionModel(
            lowering.artifact.checked_onnx_path,
            lowering.precision.dtype,
            tuple(self._float32_reasons),
            lowering.tensor_maxima,
        )

    def _put_back(self, modules: Sequence[str]) -> None:
        """Have the nodes of these modules stay in float32."""
        assert self._module_errors is not None, "the modules were ranked by their errors"
        precision = self._lowering.precision.dtype
        for module in modules:
            error = self._module_errors[module]
            self._record(f"'{module}' goes back to float32: alone in {precision} it costs {error:.2e}")
            for node, module_of_node in self._lowering.module_of_node.items():
                if module_of_node == module:
                    self._float32_reasons.setdefault(node, f"costs {error:.2e} alone, more than the budget has")

    def _record(self, attempt: str) -> None:
        self._attempts.append(attempt)
        _logger.info(attempt)


def _bound(lowered: LoweredModel) -> float:
    """The largest relative L2 error that the worst output may have."""
    worst = lowered.reports[0].worst
    return math.nan if worst is None else worst.allowed
