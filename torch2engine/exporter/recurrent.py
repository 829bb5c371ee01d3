"""nn.LSTM, nn.GRU and nn.RNN as ONNX's operators of these names, over a time axis of any length.

Enters: a model while it is traced. Leaves: nothing. During an export, each layer is one operator of this package, which
`recurrent_translations` turns into one ONNX node. Separate because torch unrolls a layer over a dynamic time axis, step
by step. Such a graph has the sample's length, and in some versions it is invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnxscript import opset22 as _typed_opset
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch2engine.capture.source_lines import current_user_line
from torch2engine.core.errors import ExportError

__all__ = ["RecurrentLayersAsOperators", "recurrent_translations"]


_OPSET: Any = _typed_opset  # its annotations are those of eager values


@dataclass(frozen=True)
class _Kind:
    """One kind of layer.

    Args:
        gates: for each of ONNX's gates, the number of the same one of PyTorch's.
        states: the number of states: hidden, and cell for LSTM.
    """

    gates: tuple[int, ...]
    states: int


# PyTorch: input, forget, cell, output; reset, update, new. ONNX: input, output, forget, cell; update, reset, hidden.
_KINDS: Mapping[str, _Kind] = {
    "lstm": _Kind((0, 3, 1, 2), 2),
    "gru": _Kind((1, 0, 2), 1),
    "rnn_tanh": _Kind((0,), 1),
    "rnn_relu": _Kind((0,), 1),
}


class RecurrentLayersAsOperators(TorchFunctionMode):
    """While it is active, PyTorch's recurrent functions become operators of our own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a recurrent function; call any other."""
        name = getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            raise _packed()
        if name in _KINDS and not kwargs and len(args) == 9 and _has_plain_weights(_KINDS[name], *args):
            return _run_stack(name, *args)
        return func(*args, **(kwargs or {}))


def _packed() -> ExportError:
    return ExportError(
        "torch.nn.utils.rnn.pack_padded_sequence",
        got="a model that packs sequences by lengths that are values",
        allowed="padded sequences",
        fix="call the layer on the padded tensor, and take the last valid step with gather",
        source=current_user_line(),
    )


def _has_plain_weights(kind: _Kind, x: Tensor, states: Any, weights: Sequence[Tensor], *options: Any) -> bool:
    """Whether there are two weights and perhaps two biases for each direction of each layer: no projections."""
    has_biases, layers, _, _, bidirectional, _ = options
    return len(weights) == layers * (2 if bidirectional else 1) * (4 if has_biases else 2)


def _run_stack(
    name: str,
    x: Tensor,
    states: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """The layers on top of each other, as `torch.lstm` and its kin compute them in inference.

    Args:
        x: [T, B, I], or [B, T, I] with batch_first.
        states: [layers * directions, B, H]; for LSTM a pair of these.
    """
    directions = 2 if bidirectional else 1
    initial = list(states) if _KINDS[name].states == 2 else [states]
    per_direction = len(weights) // (layers * directions)
    values = x.transpose(0, 1) if batch_first else x
    finals: list[list[Tensor]] = [[] for _ in initial]
    for layer in range(layers):
        first = layer * directions * per_direction
        of_layer = [
            weights[first + index * per_direction : first + (index + 1) * per_direction] for index in range(directions)
        ]
        layer_states = [state[layer * directions : (layer + 1) * directions] for state in initial]
        steps, *last = _run_layer(name, values, layer_states, of_layer)
        values = steps.permute(0, 2, 1, 3).flatten(2)
        for final, state in zip(finals, last, strict=True):
            final.append(state)
    result = values.transpose(0, 1) if batch_first else values
    return (result, *(torch.cat(final) for final in finals))


def _run_layer(
    name: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, ...]:
    """One layer, in ONNX's layout of the weights: [directions, gates * H, ...]."""
    gates = _KINDS[name].gates
    from_input = torch.stack([_ordered(direction[0], gates) for direction in weights])
    from_state = torch.stack([_ordered(direction[1], gates) for direction in weights])
    biases = [
        torch.cat([_ordered(bias, gates) for bias in direction[2:]])
        if len(direction) > 2
        else direction[0].new_zeros(2 * direction[0].shape[0])
        for direction in weights
    ]
    operators: Any = torch.ops.torch2engine
    return getattr(operators, name)(x, from_input, from_state, torch.stack(biases), *states)


def _ordered(weight: Tensor, gates: Sequence[int]) -> Tensor:
    """The gates' blocks of a weight in another order."""
    if len(gates) == 1:
        return weight
    parts = weight.chunk(len(gates))
    return torch.cat([parts[gate] for gate in gates])


def _compute(name: str, x: Tensor, weights: tuple[Tensor, Tensor, Tensor], states: Sequence[Tensor]) -> Any:
    """The layer by PyTorch itself, with the gates in its own order again."""
    gates = _KINDS[name].gates
    order = [gates.index(gate) for gate in range(len(gates))]
    directions = weights[0].shape[0]
    flat: list[Tensor] = []
    for direction in range(directions):
        bias_halves = weights[2][direction].chunk(2)
        flat += [_ordered(part, order) for part in (weights[0][direction], weights[1][direction], *bias_halves)]
    initial = tuple(states) if len(states) == 2 else states[0]
    steps, *last = getattr(torch, name)(x, initial, flat, True, 1, 0.0, False, directions == 2, False)
    split = steps.unflatten(2, (directions, states[0].shape[2])).permute(0, 2, 1, 3)
    return (split.contiguous(), *(state.clone() for state in last))


def _shapes(x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    directions, batch, hidden = states[0].shape
    return (x.new_empty((x.shape[0], directions, batch, hidden)), *(torch.empty_like(state) for state in states))


@torch.library.custom_op("torch2engine::lstm", mutates_args=())
def _lstm(x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _compute("lstm", x, (w, r, b), (h, c))


@_lstm.register_fake
def _lstm_shapes(x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    return _shapes(x, (h, c))


def _define(name: str) -> None:
    """Define the operator of a kind with one state."""

    def compute(x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return _compute(name, x, (w, r, b), (h,))

    def shapes(x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return _shapes(x, (h,))

    schema = "(Tensor x, Tensor w, Tensor r, Tensor b, Tensor h) -> (Tensor, Tensor)"
    torch.library.custom_op(f"torch2engine::{name}", compute, mutates_args=(), schema=schema).register_fake(shapes)


for _name in ("gru", "rnn_tanh", "rnn_relu"):
    _define(_name)


def _attributes(r: Any) -> dict[str, Any]:
    """The facts that every recurrent node needs, read from the recurrent weights [directions, gates * H, H]."""
    return {"hidden_size": r.shape[2], "direction": "bidirectional" if r.shape[0] == 2 else "forward"}


def _lstm_node(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any) -> Any:
    return _OPSET.LSTM(x, w, r, b, None, h, c, **_attributes(r))


def _gru_node(x: Any, w: Any, r: Any, b: Any, h: Any) -> Any:
    # PyTorch multiplies by the reset gate behind the matrix product.
    return _OPSET.GRU(x, w, r, b, None, h, linear_before_reset=1, **_attributes(r))


def _rnn_tanh_node(x: Any, w: Any, r: Any, b: Any, h: Any) -> Any:
    return _OPSET.RNN(x, w, r, b, None, h, activations=["Tanh"] * r.shape[0], **_attributes(r))


def _rnn_relu_node(x: Any, w: Any, r: Any, b: Any, h: Any) -> Any:
    return _OPSET.RNN(x, w, r, b, None, h, activations=["Relu"] * r.shape[0], **_attributes(r))


_NODES: Mapping[str, Callable[..., Any]] = {
    "lstm": _lstm_node,
    "gru": _gru_node,
    "rnn_tanh": _rnn_tanh_node,
    "rnn_relu": _rnn_relu_node,
}


def recurrent_translations() -> dict[Any, Callable[..., Any]]:
    """Return {operator: function that makes its ONNX node}, as torch.onnx takes it."""
    operators: Any = torch.ops.torch2engine
    return {getattr(operators, name).default: node for name, node in _NODES.items()}
