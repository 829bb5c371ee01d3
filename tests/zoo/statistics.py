"""Random weights that keep the signal: statistics of normalisation layers from a run, and no layer that is all zero.

Enters: a model in inference mode, and inputs. Leaves: the same model. Apart because a network without training answers
with next to the same number for every input otherwise, and a comparison of such answers proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["settle"]

SMALL = 0.02
LEAST_SHARE = 0.1  # of a channel's variance, in the mean over channels


def settle(model: nn.Module, inputs: Mapping[str, Any]) -> nn.Module:
    """Give zero parameters small values, and every BatchNorm the statistics of what reaches it."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() > 1 and not parameter.detach().any():
            nn.init.normal_(parameter, std=SMALL)
    hooks = [
        module.register_forward_pre_hook(_take_statistics) for module in model.modules() if _has_statistics(module)
    ]
    try:
        if hooks:
            with torch.no_grad():
                model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return model


def _has_statistics(module: nn.Module) -> bool:
    """Tell whether it is a BatchNorm; the frozen ones of torchvision and transformers are classes of their own."""
    return isinstance(getattr(module, "running_var", None), torch.Tensor)


def _take_statistics(module: nn.Module, args: tuple[Any, ...]) -> None:
    x = args[0].float()
    dims = [dim for dim in range(x.ndim) if dim != 1]
    variance = x.var(dims, unbiased=False)
    module.get_buffer("running_mean").copy_(x.mean(dims))
    module.get_buffer("running_var").copy_(variance + LEAST_SHARE * variance.mean() + 1e-5)
