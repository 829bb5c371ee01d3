"""Recurrent layers run over a time axis of any length, as one ONNX node a layer."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.build_here import build_here
from tests.support.models import error_of, exported, graph_of, line_of
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import ExportError
from torch2engine.core.spec import Axis
from torch2engine.exporter.recurrent import RecurrentLayersAsOperators

TIME = Axis("time", 1, 5, 9)
BATCH = Axis("batch", 1, 2, 4)


class WithStates(nn.Module):
    """A layer whose states come in and go out, as in streaming."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> Any:
        y, last = self.layer(x, states if len(states) > 1 else states[0])
        return {"y": y, "last": last}


LAYERS = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "lstm, two layers, both directions": lambda: nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True),
    "lstm without bias": lambda: nn.LSTM(3, 4, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(3, 4, batch_first=True),
    "gru, two layers, both directions": lambda: nn.GRU(3, 4, 2, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(3, 4, bidirectional=True, batch_first=True),
    "rnn with relu": lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
}


@functools.cache
def exported_layer(layer: str) -> tuple[nn.Module, OnnxArtifact, list[ParityCase]]:
    """A layer with its export, for both axes dynamic."""
    torch.manual_seed(0)
    model = LAYERS[layer]()
    return model, *exported(model, torch.randn(2, 5, 3), {"input": {0: BATCH, 1: TIME}})


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_is_right_at_every_length(layer: str) -> None:
    """One node for each layer; the answers and the last states are PyTorch's."""
    model, artifact, examples = exported_layer(layer)
    nodes = [node.op_type for node in graph_of(artifact).node if node.op_type in ("LSTM", "GRU", "RNN", "Loop", "Scan")]
    assert nodes == [layer[:4].strip(", ").upper()[: 4 if layer.startswith("lstm") else 3]] * model.num_layers
    assert error_of(artifact, examples) < 1e-5


@pytest.mark.parametrize(("layer", "states"), [(nn.LSTM(3, 4, 2), 2), (nn.GRU(3, 4, 2), 1)], ids=["lstm", "gru"])
def test_states_come_in_and_go_out(layer: nn.Module, states: int) -> None:
    """Streaming: time first, a state for each layer, chunks of any length."""
    sample = (torch.randn(5, 2, 3), *(torch.randn(2, 2, 4) for _ in range(states)))
    axes: dict[str, Any] = {"x": {0: TIME, 1: BATCH}}
    axes |= {f"states.{index}": {1: BATCH} for index in range(states)}
    artifact, examples = exported(WithStates(layer), sample, axes)
    assert error_of(artifact, examples) < 1e-5


@pytest.mark.parametrize("layer", ["lstm, two layers, both directions", "gru", "rnn"])
def test_layer_builds(layer: str) -> None:
    """TensorRT-RTX makes an engine of it, with both axes dynamic."""
    _, artifact, _ = exported_layer(layer)
    engine = build_here(artifact, config=BuildConfig(flavour="tensorrt_rtx"), cache=False)
    assert [axis.name for axis in engine.signature.axes] == ["batch", "time"]


class Packed(nn.Module):
    """Packs by lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.layer(packed)[1]


def test_packed_sequences_are_refused_with_their_line() -> None:
    """Lengths are values; the error says what to write instead."""
    with pytest.raises(ExportError) as error:
        exported(Packed(), (torch.randn(2, 5, 3), torch.tensor([5, 3])), {"x": {1: Axis("time", 5, 5, 9)}})
    assert str(error.value) == (
        "torch.nn.utils.rnn.pack_padded_sequence: got a model that packs sequences by lengths that are values; "
        "expected padded sequences; call the layer on the padded tensor, and take the last valid step with gather "
        f"(at {line_of(Packed, 'pack_padded_sequence')})"
    )


@pytest.mark.parametrize("is_bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_operator_computes_what_the_layer_does(kind: str, is_bidirectional: bool) -> None:
    """The operator of a traced program also runs, with the weights in ONNX's order."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"batch_first": True, "bidirectional": is_bidirectional}
    layer: Any = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}[kind](3, 4, **options)
    x = torch.randn(2, 5, 3)
    with torch.no_grad():
        right, last = layer(x)
        with RecurrentLayersAsOperators():
            found, states = layer(x)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(states, last)
