"""Transformers with masks taken as they are given: PyTorch's layers, and the models of Hugging Face.

Enters: a model that is about to be traced. Leaves: its layers without a look into the mask's values, and without a mask
where the caller gives none. Separate because it replaces functions of these libraries for the time of an export.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.nn.modules import transformer

from torch2engine.exporter.replaced_function import replaced

__all__ = ["masks_as_given"]

_PROBE = "_detect_is_causal_mask"
_HUGGING_FACE = "transformers.masking_utils"
_NEEDLESS = "_ignore_bidirectional_mask_sdpa"


@contextmanager
def masks_as_given() -> Generator[None]:
    """Trace what a call with these masks computes.

    nn.TransformerEncoder and nn.TransformerDecoder compare a mask with a causal one, to choose a faster kernel. That is
    a branch on values. The mask is applied either way, so the answer is the same.

    A bidirectional model of Hugging Face without a padding mask attends to everything, and makes a mask of True for it
    only while it is traced. Autoformer can't even take that mask.

    A library without these functions is left alone. Hugging Face's is not imported.
    """
    with ExitStack() as stack:
        stack.enter_context(replaced(transformer, _PROBE, lambda probe: _is_called_causal))
        stack.enter_context(replaced(sys.modules.get(_HUGGING_FACE), _NEEDLESS, _without_padding))
        yield


def _is_called_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Tell whether the caller calls the mask causal; without a word it is any mask."""
    return is_causal is True


def _without_padding(function: Callable[..., bool]) -> Callable[..., bool]:
    """Hugging Face's test whether a mask is needless: it is where there is neither padding nor a window."""

    def is_needless(
        padding_mask: Any, kv_length: Any, local_attention_size: Any = None, *others: Any, **options: Any
    ) -> bool:
        if padding_mask is None and local_attention_size is None:
            return True
        return function(padding_mask, kv_length, local_attention_size, *others, **options)

    return is_needless
