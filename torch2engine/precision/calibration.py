"""Calibration data: inputs in the form of sample_input, and a user's metric on the answers to them.

Enters: whatever the user passed. Leaves: tensors in the signature's order, or a typed error before any work is done.
Separate because it knows nothing of the graphs that precisions make.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from torch2engine.capture.torch_types import CAST_DTYPES, dtype_name, torch_dtype
from torch2engine.core.config import Budget, Precision, RuntimeConfig
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import LOW_PRECISIONS, QUANTIZED_PRECISIONS, quoted
from torch2engine.core.progress import Reporter
from torch2engine.core.pytree import as_inputs, bind, unflatten
from torch2engine.core.spec import Signature
from torch2engine.core.wording import kind_of
from torch2engine.deployed.deployed_module import DeployedModule

__all__ = [
    "Arrays",
    "CalibrationMetric",
    "batch_tensors",
    "calibration_arrays",
    "check_calibration",
    "metric_of_budget",
    "named_arrays",
]

Arrays = Mapping[str, NDArray[Any]]


def check_calibration(
    precision: Precision, calibration: object, runtime_config: RuntimeConfig = RuntimeConfig()
) -> None:
    """Refuse calibration data that can't be read or has no use, and options that don't go together.

    Raises:
        InputError: naming what is wrong.
    """
    budget = precision.budget
    has_metric = budget is not None and budget.metric is not None
    if precision.low_io and runtime_config.out_of_range == "eager":
        raise InputError(
            "Precision.low_io",
            got="True with out_of_range='eager'",
            allowed="one of them, since PyTorch's model takes its own dtypes",
            fix="leave low_io out",
        )
    if calibration is None:
        if has_metric:
            raise InputError(
                "calibration",
                got="None",
                allowed="the batches that Budget.metric is to judge",
                fix="pass calibration=[batch, ...]",
            )
        return
    if not precision.changes_graph:
        raise InputError(
            "calibration",
            got=f"{kind_of(calibration)} beside precision {precision.dtype!r}",
            allowed=f"data for {quoted(LOW_PRECISIONS, 'or')}",
            fix="leave it out",
        )
    if isinstance(calibration, (torch.Tensor, Mapping, str)) or not isinstance(calibration, Iterable):
        raise InputError(
            "calibration",
            got=kind_of(cast("object", calibration)),
            allowed="an iterable of inputs, each in the form of sample_input",
            fix="calibration=[sample] for a single one",
        )
    if _length(cast("Iterable[Any]", calibration), unknown=1) == 0:
        raise InputError(
            "calibration",
            got="no batch",
            allowed="at least one input in the form of sample_input",
            fix="pass e.g. calibration=[x for x, _ in loader]",
        )
    is_read_again = budget is not None and (precision.dtype in QUANTIZED_PRECISIONS or has_metric)
    if is_read_again and isinstance(calibration, Iterator):
        raise InputError(
            "calibration",
            got="an iterator, which can be read once",
            allowed=f"with Budget.metric, and with a budget for {quoted(QUANTIZED_PRECISIONS, 'or')}, "
            "data that can be read again",
            fix="pass a list or a DataLoader",
        )


def batch_tensors(signature: Signature, batch: Any, live: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
    """Give a batch's tensors in the signature's order and dtypes.

    Args:
        signature: of the model.
        batch: in the form of sample_input.
        live: values of the live parameters, which no batch holds.

    Raises:
        InputError, DtypeError: it is not in the form of sample_input, or of a dtype that can't be cast without loss.
    """
    inputs = as_inputs(batch)
    leaves: Sequence[Any] = [*bind(signature.parameters, inputs.args, inputs.kwargs), *live]
    for spec, leaf in zip(signature.inputs, leaves, strict=True):
        signature.check_dtype(spec, dtype_name(leaf.dtype))
    return [leaf.to(torch_dtype(spec.dtype)) for spec, leaf in zip(signature.inputs, leaves, strict=True)]


def _tensors_of_item(signature: Signature, item: Any, number: int, live: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """As `batch_tensors`, with the item's number in an error.

    Raises:
        InputError, DtypeError, ShapeError: it does not fit the signature; if it has labels, the fix is to leave them
            out.
    """
    try:
        leaves = batch_tensors(signature, item, live)
        signature.resolve([leaf.shape for leaf in leaves])
    except InputError as error:
        takes_one = sum(parameter.kind == "positional" for parameter in signature.parameters) == 1
        has_labels = takes_one and isinstance(item, (list, tuple)) and len(cast("Sequence[Any]", item)) > 1
        fix = "leave the labels out: calibration=(x for x, _ in loader)" if has_labels else error.fix
        got = f"{error.got} for {error.subject}"
        subject = f"calibration item {number}"
        raise type(error)(subject, name=error.name, got=got, allowed=error.allowed, fix=fix) from error
    return leaves


def named_arrays(signature: Signature, leaves: Sequence[torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Copy tensors to arrays on the CPU by input name; those of a half type become float32."""
    arrays: dict[str, NDArray[Any]] = {}
    for spec, leaf in zip(signature.inputs, leaves, strict=True):
        on_cpu = leaf.detach().cpu()
        arrays[spec.name] = np.ascontiguousarray((on_cpu.float() if on_cpu.dtype in CAST_DTYPES else on_cpu).numpy())
    return arrays


def calibration_arrays(
    calibration: Iterable[Any], signature: Signature, report: Reporter, live: Sequence[torch.Tensor] = ()
) -> Iterator[Arrays]:
    """Read calibration data one batch at a time, and report the progress.

    Args:
        calibration: the user's data, each batch in the form of sample_input.
        signature: of the model.
        report: receives every batch in the phase "calibration".
        live: values of the live parameters.

    Raises:
        InputError, DtypeError, ShapeError: a batch that does not fit the signature.
    """
    known_count = _length(calibration)
    count = 0
    for batch in calibration:
        report("calibration", count, max(known_count, count + 1))
        leaves = _tensors_of_item(signature, batch, count, live)
        count += 1
        yield named_arrays(signature, leaves)
    report("calibration", count, count)


def _length(batches: Iterable[Any], unknown: int = 0) -> int:
    """Find how many batches there are; `unknown` if the data can't say."""
    try:
        return length_hint(batches, unknown)
    except Exception:  # the user's own code, and a missing length only shortens the progress bar
        return unknown


@dataclass(frozen=True)
class CalibrationMetric:
    """A user's metric over the calibration data.

    Args:
        function: given (outputs, batch), it returns a number; more is better.
        floor: the least mean over all batches.
        signature: of the float32 model.
        batches: the calibration data, which can be read again.
        live: values of the live parameters.
    """

    function: Callable[[Any, Any], float]
    floor: float
    signature: Signature
    batches: Iterable[Any]
    live: Sequence[torch.Tensor] = ()

    def mean(self, module: DeployedModule[Any]) -> float:
        """Compute the mean over all batches; NaN without any."""
        values = [self._evaluate(module, batch, number) for number, batch in enumerate(self.batches)]
        return float(np.mean(values)) if values else math.nan

    def _evaluate(self, module: DeployedModule[Any], batch: Any, number: int) -> float:
        leaves = _tensors_of_item(self.signature, batch, number, self.live)
        inputs = [
            leaf.detach().to(module.device, torch_dtype(spec.dtype) if leaf.is_floating_point() else None)
            for leaf, spec in zip(leaves, module.signature.inputs, strict=True)
        ]
        answer = module.infer(inputs)
        outputs = unflatten(self.signature.output, [answer[spec.name] for spec in self.signature.outputs])
        value: Any = self.function(outputs, batch)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                "Budget.metric", got=repr(value), allowed="a number for each batch", fix="return one"
            ) from error


def metric_of_budget(
    budget: Budget | None,
    signature: Signature,
    calibration: Iterable[Any] | None,
    live: Sequence[torch.Tensor] = (),
) -> CalibrationMetric | None:
    """Make the metric of a budget; None if parity judges.

    Args:
        calibration: present if there is a metric, as `check_calibration` has made sure.
        live: values of the live parameters.
    """
    if budget is None or budget.metric is None or budget.floor is None:
        return None
    assert calibration is not None, "check_calibration refuses a metric without data"
    return CalibrationMetric(budget.metric, budget.floor, signature, calibration, live)
