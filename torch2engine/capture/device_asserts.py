"""Finds calls that may end the process's CUDA context: those with an operator that asserts on a GPU.

Enters: a call of the model on an input that the user gave. Leaves: the operators that ran on a GPU and assert there. On
a CPU they raise an exception instead. Separate so that the table of such operators is in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torch2engine.core.errors import ExportError

__all__ = ["WatchedCall", "is_on_gpu", "may_assert", "tensors_in", "watch"]

# Operators of `aten` whose CUDA kernels assert, or read memory at addresses that follow from a tensor's values. Names
# are without the underscores around them. Operators of other namespaces are unknown, so they count as well.
_READ_OR_WRITTEN_BY_INDEX = frozenset(
    {
        *("index", "index_add", "index_copy", "index_fill", "index_put", "index_put_impl", "index_reduce"),
        *("index_select", "unsafe_index", "unsafe_index_put", "unsafe_masked_index"),
        *("unsafe_masked_index_put_accumulate", "gather", "put", "scatter", "scatter_add", "scatter_reduce", "take"),
        *("take_along_dim", "embedding", "embedding_bag", "embedding_bag_forward_only", "embedding_renorm"),
        *("max_unpool2d", "max_unpool3d", "fractional_max_pool2d", "fractional_max_pool3d", "one_hot", "bincount"),
        *("searchsorted", "masked_scatter", "repeat_interleave", "segment_reduce", "tensor_split", "set_item"),
        *("grouped_mm", "scaled_grouped_mm", "scaled_grouped_mm_v2", "efficient_attention_forward"),
        *("flash_attention_forward", "flash_attention_forward_no_dropout_inplace", "cudnn_attention_forward"),
        *("pack_padded_sequence", "convert_indices_from_csr_to_coo", "convert_indices_from_coo_to_csr", "spdiags"),
        *("validate_compressed_sparse_indices",),
    }
)
_CHECKED_LABELS_AND_PROBABILITIES = frozenset(
    {
        *("nll_loss", "nll_loss_forward", "nll_loss_nd", "nll_loss2d", "nll_loss2d_forward", "cross_entropy_loss"),
        *("multi_margin_loss", "multilabel_margin_loss", "multilabel_margin_loss_forward", "ctc_loss"),
        *("cudnn_ctc_loss", "use_cudnn_ctc_loss", "use_miopen_ctc_loss", "miopen_ctc_loss", "binary_cross_entropy"),
        *("bernoulli", "binomial", "multinomial", "poisson", "assert_async", "functional_assert_async"),
    }
)
_ASSERTING = _READ_OR_WRITTEN_BY_INDEX | _CHECKED_LABELS_AND_PROBABILITIES
# They compute integers from floats, which are always in range.
_PLACES_OF_FLOATS = frozenset({"argmax", "argmin", "argsort", "count_nonzero", "nonzero"})
# Indices are a part of such tensors, and a backward pass reads the indices of its forward pass.
_ASSERTING_KINDS = ("backward", "jagged", "nested", "sparse")


def may_assert(operator: str) -> bool:
    """Tell whether an operator may assert on a GPU for some values of its inputs.

    Args:
        operator: as PyTorch's dispatcher names it, e.g. ``"aten::index_put_"``.
    """
    namespace = operator.partition("::")[0]
    base = _base_name(operator)
    return namespace != "aten" or base in _ASSERTING or any(kind in base for kind in _ASSERTING_KINDS)


def _base_name(operator: str) -> str:
    """The name without namespace, overload and underscores around it."""
    return operator.partition("::")[2].partition(".")[0].strip("_")


def is_on_gpu(tensor: torch.Tensor) -> bool:
    """Tell whether a failed assertion in an operator on this tensor would end the CUDA context."""
    return tensor.device.type not in ("cpu", "meta")


@dataclass(frozen=True)
class WatchedCall:
    """The operators of a call on a GPU.

    Args:
        asserting: its operators that may assert for other inputs; {"unknown"} for a call that can't be watched.
        follows_floats: whether it computes integers from floats, so that rounding may change an index.
    """

    asserting: frozenset[str]
    follows_floats: bool


def watch(call: Callable[[], object], on_gpu: Callable[[torch.Tensor], bool] = is_on_gpu) -> WatchedCall:
    """Run a call and find its operators on a GPU that may assert for other inputs.

    Args:
        call: of a model, on an input that the user gave.
        on_gpu: whether a tensor is on a GPU.
    """
    watcher = _OperatorWatcher(on_gpu)
    try:
        with watcher:
            call()
    except ExportError:  # the watching has failed, since the model has answered this input before
        return WatchedCall(frozenset({"unknown"}), follows_floats=True)
    return WatchedCall(frozenset(filter(may_assert, watcher.operators)), watcher.follows_floats)


class _OperatorWatcher(TorchDispatchMode):
    """Collects the names of all operators that have a tensor on a GPU."""

    supports_higher_order_operators = True  # torch.cond and the like

    def __init__(self, on_gpu: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.follows_floats = False
        self._on_gpu = on_gpu

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.cond compile as it does without a watcher.

        Dynamo keeps what it compiles. A torch.cond that it compiled under a watching mode fails for the rest of the
        process (torch 2.13).
        """
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator, and look at the devices of its tensors."""
        result = func(*args, **(kwargs or {}))
        given = list(tensors_in((args, kwargs)))
        made = list(tensors_in(result))
        if any(map(self._on_gpu, (*given, *made))):
            self.operators.add(func.name())
        if any(leaf.is_floating_point() for leaf in given) and made and all(map(_is_integer, made)):
            self.follows_floats |= _base_name(func.name()) not in _PLACES_OF_FLOATS
        return result


def _is_integer(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in an operator's arguments or result."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(cast("Mapping[Any, Any]", value).values()))
    elif isinstance(value, (tuple, list)):
        for item in cast("Sequence[Any]", value):
            yield from tensors_in(item)
