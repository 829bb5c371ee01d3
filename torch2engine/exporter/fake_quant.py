"""A model with ModelOpt's fake quantisers → the same with quantising operators, while it is exported.

Enters: a model that was quantised, and mostly fine-tuned, with modelopt.torch.quantization. Leaves: nothing; meanwhile
its quantisers are operators that become QuantizeLinear and DequantizeLinear. Beside `export` because it knows another
project's class, which torch.export can't trace: it looks at values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from torch2engine.core.errors import ExportError

__all__ = ["quantizers_as_operators"]

_HOME = "modelopt.torch.quantization.nn.modules.tensor_quantizer"
_BACKEND = "torch2engine"
_LARGEST = 127.0  # ModelOpt's scale is the largest absolute value over this one, for narrow ranges and others alike

Quantize = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def quantizers_as_operators(model: nn.Module) -> Generator[str]:
    """Let each fake quantiser of the model be a pair of operators.

    Returns:
        "int8", or "" for a model without quantisers.

    Raises:
        ExportError: a quantiser that was not calibrated, or is no plain int8.
    """
    home: Any = sys.modules.get(_HOME)
    quantizers = _quantizers(model, home)
    if not quantizers:
        yield ""
        return
    operators = {id(part): _operator(name, part) for name, part in quantizers.items()}
    before = {name: part.backend for name, part in quantizers.items()}

    def entry(x: torch.Tensor, part: object) -> torch.Tensor:
        return operators[id(part)](x)

    home.register_quant_backend(_BACKEND, entry)
    try:
        for part in quantizers.values():
            part.backend = _BACKEND
        yield "int8"
    finally:
        for name, part in quantizers.items():
            part.backend = before[name]
        home.unregister_quant_backend(_BACKEND)


def _quantizers(model: nn.Module, home: Any) -> dict[str, Any]:
    """Those that are on, by path; none where ModelOpt was never imported."""
    if home is None:
        return {}
    parts = cast("Iterable[tuple[str, Any]]", model.named_modules())
    return {name: part for name, part in parts if isinstance(part, home.TensorQuantizer) and part.is_enabled}


def _operator(name: str, part: Any) -> Quantize:
    """The quantiser as operators on int8.

    Raises:
        ExportError: it has no such form.
    """
    largest: Any = getattr(part, "_amax", None)
    for wrong, got in (
        (part.num_bits != 8, f"it has {part.num_bits} bits (exponent, mantissa)"),
        (bool(part.unsigned), "it is unsigned"),
        (part.block_sizes is not None, "it quantises in blocks"),
        (largest is None, "it was never calibrated"),
    ):
        if wrong:
            raise ExportError(
                f"quantiser '{name}'",
                got=got,
                allowed="a calibrated symmetric int8 quantiser, for a tensor or for each channel",
                fix="use mtq.INT8_DEFAULT_CFG, or deploy the model without quantisers and with precision=...",
            )
    operators: Any = torch.ops.quantized_decomposed
    amax: torch.Tensor = largest.detach().float().cpu()
    bounds = (-128, 127, torch.int8)
    if amax.numel() == 1:
        scale = max(float(amax), 1e-12) / _LARGEST

        def whole(x: torch.Tensor) -> torch.Tensor:
            low = operators.quantize_per_tensor.default(x, scale, 0, *bounds)
            return operators.dequantize_per_tensor.default(low, scale, 0, *bounds)

        return whole
    axis = next(index for index, size in enumerate(amax.shape) if size > 1)
    scales = amax.flatten().clamp(min=1e-12) / _LARGEST
    zeros = torch.zeros(scales.numel(), dtype=torch.int64)

    def by_channel(x: torch.Tensor) -> torch.Tensor:
        here = scales.to(x.device), zeros.to(x.device), axis
        low = operators.quantize_per_channel.default(x, *here, *bounds)
        return operators.dequantize_per_channel.default(low, *here, *bounds)

    return by_channel
