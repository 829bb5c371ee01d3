"""Calls that need gradients → PyTorch; all other calls → engines.

Enters: two callables that answer the same calls. Leaves: one callable. Separate because graphs of torch.compile and
swapped submodules of a pipeline make this choice in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from torch2engine.core.user_warning import warn_user

__all__ = ["InferenceOnly", "needs_gradients"]

_WANTS_GRADS = (
    "gradients are needed, so PyTorch itself answers, since engines only infer; call the model under torch.no_grad() "
    "or torch.inference_mode() to run it in engines"
)


class InferenceOnly:
    """Answers inference by engines, and calls that need gradients by PyTorch, with one warning.

    Args:
        in_engines: answers without gradients.
        in_pytorch: answers the same calls, with gradients.
    """

    _t2e_deployed = True  # `unwrap`, in a lower layer, reads it: a module with this forward does not answer by itself

    def __init__(self, in_engines: Callable[..., Any], in_pytorch: Callable[..., Any]) -> None:
        self._in_engines = in_engines
        self._in_pytorch = in_pytorch
        self._has_warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not needs_gradients((args, kwargs)):
            return self._in_engines(*args, **kwargs)
        if not self._has_warned:
            self._has_warned = True
            warn_user(_WANTS_GRADS)
        return self._in_pytorch(*args, **kwargs)


def needs_gradients(values: object) -> bool:
    """Whether autograd would record a call with these values, which may lie in containers."""
    if not torch.is_grad_enabled():
        return False
    leaves: list[object] = tree_leaves(values)
    return any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)
