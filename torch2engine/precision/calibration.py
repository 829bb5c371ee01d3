"""Calibration data: inputs in the form of sample_input, and what a user's metric says of the answers to them.

Enters: whatever the user passed. Leaves: tensors in the signature's order, or a typed error before any work is done.
Apart from `lowering` because it knows nothing of precisions' graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from torch2engine.capture.torch_types import dtype_name, torch_dtype
from torch2engine.core.config import QUANTIZED, Precision, RuntimeConfig
from torch2engine.core.errors import InputError
from torch2engine.core.pytree import as_inputs, bind, unflatten
from torch2engine.core.spec import Signature
from torch2engine.modules.deployed import DeployedModule

__all__ = ["Metric", "arrays", "check_calibration", "tensors"]


def check_calibration(
    precision: Precision, calibration: object, runtime_config: RuntimeConfig = RuntimeConfig()
) -> None:
    """Refuse, before any work, what does not go together, and calibration data that can't be read.

    Raises:
        InputError: naming what is wrong.
    """
    if precision.low_io and runtime_config.out_of_range == "eager":
        raise InputError(
            "Precision.low_io",
            got="True with out_of_range='eager'",
            allowed="one of them: PyTorch's model takes its own dtypes",
        )
    if calibration is None:
        if precision.budget is not None and precision.budget.metric is not None:
            raise InputError("calibration", got="None", allowed="the batches that Budget.metric is to judge")
        return
    if not precision.changes_graph:
        raise InputError(
            "calibration",
            got=f"given with precision {precision.dtype!r}",
            allowed="data for 'fp16', 'bf16', 'int8' or 'fp8'",
            fix="leave it out",
        )
    if isinstance(calibration, (torch.Tensor, Mapping, str)) or not isinstance(calibration, Iterable):
        raise InputError(
            "calibration",
            got=f"a {type(cast('object', calibration)).__name__}",
            allowed="an iterable of inputs, each in the form of sample_input",
            fix="calibration=[sample] for a single one",
        )
    again = precision.budget is not None and (precision.dtype in QUANTIZED or precision.budget.metric is not None)
    if again and isinstance(calibration, Iterator):
        raise InputError(
            "calibration",
            got="an iterator, which can be read once",
            allowed="with Budget.metric, and with a budget for 'int8' or 'fp8', data that can be read again",
            fix="pass a list or a DataLoader",
        )


def tensors(signature: Signature, batch: Any) -> list[torch.Tensor]:
    """A batch's tensors in the signature's order and dtypes.

    Raises:
        InputError, DtypeError: it is not in the form of sample_input, or of a dtype that can't be cast without loss.
    """
    given = as_inputs(batch)
    leaves = cast("list[torch.Tensor]", bind(signature.parameters, given.args, given.kwargs))
    for spec, leaf in zip(signature.inputs, leaves, strict=True):
        signature.check_dtype(spec, dtype_name(leaf.dtype))
    return [leaf.to(torch_dtype(spec.dtype)) for spec, leaf in zip(signature.inputs, leaves, strict=True)]


def arrays(signature: Signature, leaves: Sequence[torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors as arrays on the CPU by input name; 16-bit floats as float32, for which numpy has no bfloat16."""
    halves = (torch.float16, torch.bfloat16)
    plain = [leaf.detach().cpu().float() if leaf.dtype in halves else leaf.detach().cpu() for leaf in leaves]
    return {spec.name: np.ascontiguousarray(leaf.numpy()) for spec, leaf in zip(signature.inputs, plain, strict=True)}


@dataclass(frozen=True)
class Metric:
    """A user's metric over the calibration data."""

    call: Callable[[Any, Any], float]
    floor: float
    signature: Signature
    batches: Iterable[Any]

    def __call__(self, module: DeployedModule[Any]) -> float:
        """The mean over all batches; NaN without any."""
        values: list[float] = []
        for batch in self.batches:
            leaves = tensors(self.signature, batch)
            specs = module.signature.inputs
            given = [
                leaf.detach().to(module.device, torch_dtype(spec.dtype) if leaf.is_floating_point() else None)
                for leaf, spec in zip(leaves, specs, strict=True)
            ]
            answer = module.infer(given)
            outputs = unflatten(self.signature.output, [answer[spec.name] for spec in self.signature.outputs])
            value = cast("Any", self.call)(outputs, batch)
            try:
                values.append(float(value))
            except (TypeError, ValueError) as error:
                raise InputError(
                    "Budget.metric", got=f"it returned {value!r}", allowed="a number for each batch"
                ) from error
        return float(np.mean(values)) if values else math.nan
