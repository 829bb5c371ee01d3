"""PyTorch's transformers with masks taken as they are given.

Enters: a model that is about to be traced. Leaves: nn.Transformer's layers without their look into the mask's values.
Separate because it replaces one of PyTorch's own functions for the time of an export.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules import transformer

__all__ = ["masks_as_given"]

_PROBE = "_detect_is_causal_mask"


@contextmanager
def masks_as_given() -> Generator[None]:
    """Don't compare masks with a causal one, which is a branch on values.

    nn.TransformerEncoder and nn.TransformerDecoder do that to choose a faster kernel. The mask is applied either way,
    so the answer is the same. A torch without that function is left alone.
    """
    probe: Any = getattr(transformer, _PROBE, None)
    if probe is None:
        yield
        return
    setattr(transformer, _PROBE, _is_called_causal)
    try:
        yield
    finally:
        setattr(transformer, _PROBE, probe)


def _is_called_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """What the caller says of the mask; without a word it is any mask."""
    return is_causal is True
