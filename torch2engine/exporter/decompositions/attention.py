"""Attention with PyTorch's semantics, in the pattern that TensorRT fuses.

Enters: the arguments of `scaled_dot_product_attention` or of one of its forms for a device. Leaves: its results, from
matrix products and one softmax. Separate because one function serves every form.

torch.onnx's own translation takes four dimensions only, and averages all values for a query whose keys are all masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ATTENTION", "needs_exact_attention", "scaled_dot_product_attention"]


@dataclass(frozen=True)
class _Bias:
    """A mask as numbers to add to the scores.

    `added` has the query's dtype. A value of `seen` is true where a query sees at least one key; None: each one does.
    """

    added: Tensor
    seen: Tensor | None


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention as PyTorch does, for any number of batch dimensions.

    Args:
        query: [..., L, E].
        key: [..., S, E].
        value: [..., S, Ev].
        attn_mask: bool (true: this key is seen) or float (added to the scores), broadcast over [..., L, S].
        dropout_p: share of the attention weights that are dropped.
        is_causal: query i sees the keys 0..i.
        scale: factor of the scores; 1 / sqrt(E) by default.
        enable_gqa: groups of query heads share a key and a value head.

    Returns:
        [..., L, Ev]; zeros for a query that sees no key.
    """
    if enable_gqa:
        key = _repeat_heads(key, query)
        value = _repeat_heads(value, query)
    bias = _bias(query, key, attn_mask, is_causal)
    # Softmax cancels what all scores of a query have in common, so a masked row is cleared after the second product.
    # Then only operators that TensorRT's fused kernel knows stand between the two products.
    weights = torch.softmax(_scores(query, key, bias, scale), dim=-1)
    if dropout_p > 0:
        weights = torch.dropout(weights, dropout_p, True)
    result = torch.matmul(weights, value)
    if bias is None or bias.seen is None:
        return result
    return torch.where(bias.seen, result, 0.0)


def _scores(query: Tensor, key: Tensor, bias: _Bias | None, scale: float | None) -> Tensor:
    """Scale both factors by the root of the scale, as PyTorch does, so that their product stays small in float16."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    root = math.sqrt(abs(factor))
    scores = torch.matmul(query * math.copysign(root, factor), key.transpose(-2, -1) * root)
    return scores if bias is None else scores + bias.added


def _bias(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> _Bias | None:
    """The mask and the causal limit as one bias."""
    if mask is None:
        # The first key is seen by each query.
        return _Bias(_added(_causal(query, key), query.dtype), None) if is_causal else None
    if mask.dtype == torch.bool:
        added = _added(mask & _causal(query, key) if is_causal else mask, query.dtype)
        # Each value is 0 or the lowest one, in any dtype that a lower precision gives it.
        return _Bias(added, added.amax(-1, keepdim=True) > -1.0)
    if is_causal:
        mask = torch.where(_causal(query, key), mask, -math.inf)
    return _Bias(mask.to(query.dtype), mask.amax(-1, keepdim=True) > -math.inf)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen; else the lowest finite value, as infinities would spoil a calibration.

    Its weight is exactly 0 beside any key that is seen.
    """
    zero = torch.zeros((), dtype=dtype, device=seen.device)
    return torch.where(seen, zero, torch.finfo(dtype).min)


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """[L, S]: true where the key's position is not above the query's."""
    rows = torch.arange(query.shape[-2], device=query.device)
    columns = torch.arange(key.shape[-2], device=query.device)
    return rows.unsqueeze(-1) >= columns


def _repeat_heads(shared: Tensor, query: Tensor) -> Tensor:
    """Repeat each head of a key or value for the query heads that share it."""
    heads = shared.shape[-3]
    group = query.shape[-3] // heads
    if group == 1:
        return shared
    sizes = shared.shape
    expanded = shared.unsqueeze(-3).expand(*sizes[:-3], heads, group, *sizes[-2:])
    return expanded.reshape(*sizes[:-3], heads * group, *sizes[-2:])


def _math(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    dropout_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """`_scaled_dot_product_attention_math`: the result and the weights."""
    if dropout_mask is not None:
        return NotImplemented
    result = scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    shared = _repeat_heads(key, query) if enable_gqa else key
    bias = _bias(query, shared, attn_mask, is_causal)
    weights = torch.softmax(_scores(query, shared, bias, scale), dim=-1)
    return result, weights if bias is None or bias.seen is None else torch.where(bias.seen, weights, 0.0)


def _flash_for_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`_scaled_dot_product_flash_attention_for_cpu`: the result and the logarithm of the softmax's sum."""
    return _with_logsumexp(query, key, value, attn_mask, dropout_p, is_causal, scale)


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """`_scaled_dot_product_efficient_attention`: the result, logsumexp and the state of a random generator."""
    seed = torch.zeros((), dtype=torch.int64)
    return (*_with_logsumexp(query, key, value, attn_bias, dropout_p, is_causal, scale), seed, seed.clone())


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """`_scaled_dot_product_flash_attention`: the result, logsumexp and what a backward pass needs."""
    return _with_backward_state(query, key, value, None, dropout_p, is_causal, scale)


def _cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """`_scaled_dot_product_cudnn_attention`: as `_flash`, with a bias."""
    return _with_backward_state(query, key, value, attn_bias, dropout_p, is_causal, scale)


def _overrideable(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """`_scaled_dot_product_fused_attention_overrideable`: as `_flash`, with a bias."""
    return _with_backward_state(query, key, value, attn_bias, dropout_p, is_causal, scale)


def _with_logsumexp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """The result, and [..., L]: the logarithm of the softmax's sum. Heads may be shared without a flag here."""
    key = _repeat_heads(key, query)
    value = _repeat_heads(value, query)
    result = scaled_dot_product_attention(query, key, value, mask, dropout_p, is_causal, scale=scale)
    scores = _scores(query, key, _bias(query, key, mask, is_causal), scale)
    return result, torch.logsumexp(scores.float(), dim=-1)


def _with_backward_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> tuple[Any, ...]:
    """Nine results. The last seven serve a backward pass or a debugger, so empty tensors replace them."""
    lengths = torch.zeros(0, dtype=torch.int64)
    return (
        *_with_logsumexp(query, key, value, mask, dropout_p, is_causal, scale),
        lengths,
        lengths.clone(),
        query.shape[-2],
        key.shape[-2],
        lengths.clone(),
        lengths.clone(),
        query.new_empty((0,)),
    )


ATTENTION: Mapping[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "_scaled_dot_product_attention_math": _math,
    "_scaled_dot_product_flash_attention_for_cpu": _flash_for_cpu,
    "_scaled_dot_product_efficient_attention": _efficient,
    "_scaled_dot_product_flash_attention": _flash,
    "_scaled_dot_product_cudnn_attention": _cudnn,
    "_scaled_dot_product_fused_attention_overrideable": _overrideable,
}


def needs_exact_attention(program: torch.export.ExportedProgram, is_refittable: bool = False) -> bool:
    """Tell whether torch.onnx would translate some attention of a program wrongly, or not at all.

    Otherwise its own translation stays. With it, TensorRT-RTX 1.6.1 computes the product before it in int8 or fp8; with
    ours, in float32 (H200).

    Args:
        program: from torch.export.
        is_refittable: whether other weights can be given to the engine. torch.onnx makes a causal mask by Trilu, for
            which TensorRT's importer adds a weight that no module has. Ours are comparisons.
    """
    attention = torch.ops.aten.scaled_dot_product_attention.default
    nodes: Iterable[Any] = program.graph.nodes
    found = [_arguments(node) for node in nodes if node.target is attention]
    return any(_is_special(one, program) or (is_refittable and one.get("is_causal", False)) for one in found)


def _arguments(node: Any) -> dict[str, Any]:
    """The arguments of one attention by their names."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _is_special(arguments: Mapping[str, Any], program: torch.export.ExportedProgram) -> bool:
    """Tell whether one attention has another rank than four, shared heads, or a mask that may hide a whole row."""
    ranks = {arguments[name].meta["val"].dim() for name in ("query", "key", "value")}
    mask = arguments.get("attn_mask")
    may_hide_rows = mask is not None and (mask.meta["val"].dtype == torch.bool or _may_be_infinite(mask, program))
    return bool(ranks != {4} or arguments.get("enable_gqa") or may_hide_rows)


def _may_be_infinite(mask: Any, program: torch.export.ExportedProgram) -> bool:
    """Tell whether a float mask may hold -inf: from an input, from a stored tensor, or from a constant of the code."""
    stored: dict[str, Any] = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names.update(signature.inputs_to_lifted_tensor_constants)
    pending: list[Any] = [mask]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        pending += node.all_input_nodes
        if node.op == "placeholder" and node.meta["val"].is_floating_point():
            tensor = stored.get(names.get(node.name, ""))
            if not isinstance(tensor, Tensor) or bool(tensor.isinf().any()):
                return True
        if any(
            isinstance(argument, float) and math.isinf(argument) for argument in (*node.args, *node.kwargs.values())
        ):
            return True
    return False
