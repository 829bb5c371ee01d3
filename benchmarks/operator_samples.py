"""PyTorch's own samples of its operators (OpInfo) → one module with inputs for each operator.

Enters: an operator's name, and whether the leading dimension shall be dynamic. Leaves: a module that calls it, its
tensors, and the dynamic axes. Apart because PyTorch's test helpers are private: only this file reads them.
"""

from __future__ import annotations

import itertools
import re
import sys
import types
import unittest
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

import torch2engine as t2e

__all__ = ["OPT", "OperatorCase", "load_operators", "make_case", "reason_to_refuse"]

SEED = 0
LOW, OPT, HIGH = 2, 7, 9  # 7: no other size in PyTorch's samples, so that no coincidence hides a fault
MOST_SAMPLES = 200
MOST_ELEMENTS = 20_000
# Operators whose later tensors no model computes: boundaries are sorted, weights are a layer's own.
FIXED_LATER_TENSORS = re.compile(r"bucketize|nn\.functional\.(conv|batch_norm|instance_norm).*|native_batch_norm")

# Operators that no engine can have, each with the reason. They must be refused; the share of passes leaves them out.
REFUSED: Mapping[str, str] = {
    r"normal(\..*)?|randn?_like|randint_like|cauchy|exponential|geometric|log_normal|uniform|bernoulli|multinomial"
    r"|nn\.functional\.(fractional_max_pool\dd|rrelu|dropout\d?|alpha_dropout|feature_alpha_dropout\..*)"
    r"|svd_lowrank|pca_lowrank": "answers at random",
    r"nonzero|unique|unique_consecutive|masked_select|argwhere|histc|bincount|histogram(dd)?|combinations"
    r"|repeat_interleave\.tensor": "the shape of its result depends on values",
    r"linalg\.(eig|eigh|eigvals|eigvalsh|svd|svdvals|lstsq.*|ldl_\w+|lu|lu_\w+|pinv.*|matrix_rank.*|cond|qr"
    r"|householder_product)|svd|qr|lu|lu_unpack|lu_solve|geqrf|ormqr|pinverse|norm\.nuc": "an iterative factorisation",
}
# What is no function from tensors to tensors of an inference graph.
EXCLUDED = re.compile(
    r"empty.*|new_empty.*|_?(to_)?sparse.*|jiterator.*|resize_.*|.*_backward.*|_segment_reduce.*|_chunk_cat|item"
    r"|allclose|equal|nonzero_static|as_strided\.partial_views|_batch_norm_with_update|_unsafe_masked_index.*"
    r"|normal\.in_place|hash_tensor|linalg\.(norm\.subgradients|lstsq\.grad).*|nn\.functional\..*\.grad"
)


@dataclass(frozen=True)
class OperatorCase:
    """One operator as a module.

    Args:
        module: calls the operator.
        inputs: the tensors to call it with.
        axes: dynamic_axes; empty for a static case.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    axes: Mapping[str, Mapping[int, t2e.Axis]]


class _Operator(nn.Module):
    """Calls an operator; tensors come as arguments, everything else is fixed."""

    def __init__(self, function: Any, leaves: Sequence[Any], spec: Any) -> None:
        super().__init__()
        self.function = function
        self.leaves = list(leaves)
        self.spec = spec

    def forward(self, *tensors: Tensor) -> Any:
        following = iter(tensors)
        leaves = [next(following) if leaf is None else leaf.value for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        result = self.function(*args, **kwargs)
        return tuple(map(_as_real, result)) if isinstance(result, (list, tuple)) else _as_real(result)

    def fixed_tensors(self) -> list[Tensor]:
        """The tensors that no argument replaces."""
        return [leaf.value for leaf in self.leaves if leaf is not None and isinstance(leaf.value, Tensor)]


def _as_real(result: Any) -> Any:
    """A complex result as pairs of real numbers, since no engine has complex outputs."""
    return torch.view_as_real(result) if isinstance(result, Tensor) and result.is_complex() else result


@dataclass(frozen=True)
class _Fixed:
    """An argument that is no tensor."""

    value: Any


def load_operators() -> dict[str, Any]:
    """{name with variant: OpInfo} of the operators that take float32, integers or bools."""
    if "expecttest" not in sys.modules:
        try:
            import expecttest  # noqa: F401  # pyright: ignore[reportMissingImports,reportUnusedImport]  # may be absent
        except ImportError:  # PyTorch's helpers need its base class of tests alone
            stand_in = types.ModuleType("expecttest")
            stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]  # made here
            sys.modules["expecttest"] = stand_in
    # They would forbid every later change of a backend's switches, which torch2engine makes and puts back.
    torch.backends.disable_global_flags = lambda: None  # type: ignore[attr-defined]  # torch's own function
    with warnings.catch_warnings():  # hypothesis would only make PyTorch's own tests repeatable
        warnings.filterwarnings("ignore", "Fail to import hypothesis", ImportWarning)
        from torch.testing._internal.common_methods_invocations import op_db

    named = {f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name: op for op in op_db}
    return {name: op for name, op in named.items() if _dtype(op) is not None and not EXCLUDED.fullmatch(name)}


def reason_to_refuse(name: str) -> str:
    """Why no engine can have an operator; "" for one that should pass."""
    return next((reason for pattern, reason in REFUSED.items() if re.fullmatch(pattern, name)), "")


def make_case(op: Any, dynamic: bool) -> OperatorCase | None:
    """Take the first of PyTorch's samples that fits.

    Args:
        op: an OpInfo.
        dynamic: the leading dimension of the inputs that share it becomes an axis.

    Returns:
        None if PyTorch has no sample that fits: no tensor in it, or it answers at one leading size only.
    """
    for sample in itertools.islice(_samples(op), MOST_SAMPLES):
        leaves, spec = tree_flatten(((sample.input, *sample.args), dict(sample.kwargs)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        fixed = [_Fixed(leaf) if _is_fixed(op.name, leaf, tensors) else None for leaf in leaves]
        tensors = [leaf.detach() for leaf, value in zip(leaves, fixed, strict=True) if value is None]
        module = _Operator(op.op, fixed, spec)
        if not _is_usable(tensors) or not _results(module, tensors):
            continue
        if not dynamic:
            return OperatorCase(module, tuple(tensors), {})
        case = _with_axis(module, tensors)
        if case is not None:
            return case
    return None


def _is_fixed(name: str, leaf: Any, tensors: Sequence[Tensor]) -> bool:
    """Numbers are fixed, and tensors that no model computes, such as the boundaries of buckets, which are sorted."""
    return not isinstance(leaf, Tensor) or (leaf is not tensors[0] and FIXED_LATER_TENSORS.fullmatch(name) is not None)


def _samples(op: Any) -> Iterator[Any]:
    torch.manual_seed(SEED)
    yield from op.sample_inputs("cpu", _dtype(op), requires_grad=False)


def _dtype(op: Any) -> torch.dtype | None:
    return next((dtype for dtype in (torch.float32, torch.int64, torch.bool) if dtype in op.dtypes), None)


def _is_usable(tensors: Sequence[Tensor]) -> bool:
    """Ordinary tensors that are not empty, and not large."""
    ordinary = all(t.layout == torch.strided and not t.is_complex() and t.dtype != torch.float64 for t in tensors)
    return ordinary and bool(tensors) and all(0 < t.numel() <= MOST_ELEMENTS for t in tensors)


def _results(module: _Operator, tensors: Sequence[Tensor]) -> int:
    """Count PyTorch's results; 0 where it refuses, writes into an argument, or gives what can't be judged."""
    arguments = [*tensors, *module.fixed_tensors()]
    before = [tensor.clone() for tensor in arguments]
    try:
        result, _ = tree_flatten(module(*tensors))
    except Exception:  # whatever PyTorch says to this size
        return 0
    if not all(torch.equal(now.nan_to_num(), then.nan_to_num()) for now, then in zip(arguments, before, strict=True)):
        return 0
    return len(result) if all(isinstance(part, Tensor) and _can_be_judged(part) for part in result) else 0


def _can_be_judged(result: Tensor) -> bool:
    """TensorRT has no float64; an answer without one finite element proves nothing."""
    ordinary = result.layout == torch.strided and result.dtype != torch.float64
    return ordinary and (result.numel() == 0 or bool(torch.isfinite(result).any()))


def _with_axis(module: _Operator, tensors: Sequence[Tensor]) -> OperatorCase | None:
    """The case with an axis: on every input of the same leading size, else on the first input alone."""
    lead = tensors[0].shape[0] if tensors[0].dim() else 0
    if lead == 0:
        return None
    shared = [index for index, tensor in enumerate(tensors) if tensor.dim() and tensor.shape[0] == lead]
    for axis_of in (shared, [0]):
        resized = {size: _resized(tensors, axis_of, size) for size in (LOW, OPT, HIGH)}
        counts = {_results(module, inputs) for inputs in resized.values()}
        if len(counts) == 1 and 0 not in counts:
            axis = t2e.Axis("n", LOW, OPT, HIGH)
            axes = {f"tensors.{index}": {0: axis} for index in axis_of}
            return OperatorCase(module, tuple(resized[OPT]), axes)
    return None


def _resized(tensors: Sequence[Tensor], axis_of: Sequence[int], size: int) -> list[Tensor]:
    """Tensors with rows repeated or left out, so that they keep what PyTorch's sample has, such as symmetry."""
    return [t[torch.arange(size) % t.shape[0]] if i in axis_of else t.clone() for i, t in enumerate(tensors)]
