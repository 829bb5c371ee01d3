"""A model with ModelOpt's fake quantisers → the same with quantising operators, while it is exported.

Enters: a model that was quantised, and mostly fine-tuned, with modelopt.torch.quantization. Leaves: nothing; meanwhile
its quantisers are operators that become QuantizeLinear and DequantizeLinear. Separate because it knows another
project's class. torch.export can't trace that class, which reads values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from torch2engine.core.errors import ExportError
from torch2engine.core.precisions import precision_word

__all__ = ["quantizers_as_operators"]

_QUANTIZER_MODULE = "modelopt.torch.quantization.nn.modules.tensor_quantizer"
_BACKEND = "torch2engine"
_LARGEST_CODE = (
    127.0  # ModelOpt's scale is the largest absolute value over this one, for narrow ranges and others alike
)

Quantize = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def quantizers_as_operators(model: nn.Module) -> Generator[str]:
    """Let each fake quantiser of the model be a pair of operators.

    Returns:
        "int8", or "" for a model without quantisers.

    Raises:
        ExportError: a quantiser that was not calibrated, or is no plain int8.
    """
    modelopt: Any = sys.modules.get(_QUANTIZER_MODULE)
    quantizers = _enabled_quantizers(model, modelopt)
    if not quantizers:
        yield ""
        return
    quantize_by = {id(quantizer): _as_function(path, quantizer) for path, quantizer in quantizers.items()}
    backends = {path: quantizer.backend for path, quantizer in quantizers.items()}

    def quantize(x: torch.Tensor, quantizer: object) -> torch.Tensor:
        return quantize_by[id(quantizer)](x)

    modelopt.register_quant_backend(_BACKEND, quantize)
    try:
        for quantizer in quantizers.values():
            quantizer.backend = _BACKEND
        yield precision_word(torch.int8)
    finally:
        for path, quantizer in quantizers.items():
            quantizer.backend = backends[path]
        modelopt.unregister_quant_backend(_BACKEND)


def _enabled_quantizers(model: nn.Module, modelopt: Any) -> dict[str, Any]:
    """The quantisers that are on, by path; none where ModelOpt was never imported."""
    if modelopt is None:
        return {}
    modules = cast("Iterable[tuple[str, Any]]", model.named_modules())
    is_quantizer = modelopt.TensorQuantizer
    return {path: module for path, module in modules if isinstance(module, is_quantizer) and module.is_enabled}


def _as_function(path: str, quantizer: Any) -> Quantize:
    """The quantiser as a function of operators on int8.

    Raises:
        ExportError: it has no such form.
    """
    largest: Any = getattr(quantizer, "_amax", None)
    if quantizer.num_bits != 8:
        raise _not_int8(path, f"{quantizer.num_bits} bits (exponent, mantissa)")
    if quantizer.unsigned:
        raise _not_int8(path, "an unsigned one")
    if quantizer.block_sizes is not None:
        raise _not_int8(path, "one that quantises in blocks")
    if largest is None:
        raise _not_int8(path, "one that was never calibrated")
    operators: Any = torch.ops.quantized_decomposed
    amax: torch.Tensor = largest.detach().float().cpu()
    bounds = (-128, 127, torch.int8)
    if amax.numel() == 1:
        scale = max(float(amax), 1e-12) / _LARGEST_CODE

        def quantize_tensor(x: torch.Tensor) -> torch.Tensor:
            codes = operators.quantize_per_tensor.default(x, scale, 0, *bounds)
            return operators.dequantize_per_tensor.default(codes, scale, 0, *bounds)

        return quantize_tensor
    axis = next(index for index, size in enumerate(amax.shape) if size > 1)
    scales = amax.flatten().clamp(min=1e-12) / _LARGEST_CODE
    zeros = torch.zeros(scales.numel(), dtype=torch.int64)

    def quantize_channels(x: torch.Tensor) -> torch.Tensor:
        arguments = (scales.to(x.device), zeros.to(x.device), axis, *bounds)
        codes = operators.quantize_per_channel.default(x, *arguments)
        return operators.dequantize_per_channel.default(codes, *arguments)

    return quantize_channels


def _not_int8(path: str, got: str) -> ExportError:
    return ExportError(
        f"quantiser '{path}'",
        got=got,
        allowed="a calibrated symmetric int8 quantiser, for a tensor or for each channel",
        fix="use mtq.INT8_DEFAULT_CFG, or deploy the model without quantisers and with precision=...",
    )
