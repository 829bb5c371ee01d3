"""Models for the tests of the front half of the road, and that road in short.

Enters: a model, a sample, axes. Leaves: what capture, export and cases make of them. A room of its own because each of
those tests starts from the same few models, whose classes must be found by import.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import nn

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.spec import Axis
from torch2engine.exporter.export_onnx import export_onnx
from torch2engine.onnx_graph.ort_session import OrtSession

BATCH = {0: Axis("batch", 1, 4, 8)}


def captured(
    model: nn.Module,
    sample: Any,
    axes: Mapping[str, Any] | None = None,
    profiles: Any = None,
    preprocess: Any = None,
    mutations: str = "refuse",
) -> CapturedCall:
    """The settled call."""
    model = unwrap(model)
    with undisturbed(model):
        return capture_call(model, sample, axes, profiles, preprocess, mutations=mutations)


def exported(
    model: nn.Module, sample: Any, axes: Mapping[str, Any] | None = None, profiles: Any = None
) -> tuple[OnnxArtifact, list[ParityCase]]:
    """The artifact, and the cases that it must answer."""
    model = unwrap(model)
    with undisturbed(model):
        settled = capture_call(model, sample, axes, profiles)
        artifact = export_onnx(settled)
        return artifact, make_parity_cases(settled.with_axes_and_profiles_of(artifact))[0]


def graph_of(artifact: OnnxArtifact) -> Any:
    """The ONNX graph."""
    return onnx.load(str(artifact.onnx_path)).graph


def answer(artifact: OnnxArtifact, case: ParityCase) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs on a case's inputs."""
    inputs = {spec.name: array(leaf) for spec, leaf in zip(artifact.signature.inputs, case.inputs, strict=True)}
    return OrtSession(artifact.onnx_path)(inputs)


def array(tensor: torch.Tensor) -> np.ndarray:
    """As numpy, which has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def error_of(artifact: OnnxArtifact, examples: list[ParityCase]) -> float:
    """The largest difference from the reference in any case and output, relative to the output's largest value."""
    worst = 0.0
    for case in examples:
        answers = answer(artifact, case)
        assert list(answers) == list(case.outputs)
        for name, wanted in case.outputs.items():
            got, right = answers[name].astype(np.float64), array(wanted).astype(np.float64)
            assert got.shape == right.shape, f"{case.name}: {name} is {got.shape}, not {right.shape}"
            if right.size:
                worst = max(worst, float(np.abs(got - right).max() / max(1e-12, np.abs(right).max())))
    return worst


def line_of(code: Any, text: str) -> str:
    """ "FILE:LINE" of the first line that contains `text` in a class or function."""
    lines, first = inspect.getsourcelines(code)
    return f"{inspect.getsourcefile(code)}:{first + next(i for i, line in enumerate(lines) if text in line)}"


class Pair(NamedTuple):
    """Two tensors by name."""

    left: Any
    right: Any


@dataclass
class Box:
    """A tensor, a constant, and perhaps another tensor."""

    tensor: Any
    number: int = 3
    maybe: Any = None


class Function(nn.Module):
    """x -> whatever `function` makes of it and of a weight of 3 elements."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, self.w)


class Arguments(nn.Module):
    """Every kind of parameter."""

    def forward(
        self, x: torch.Tensor, mask: Any = None, *rest: Any, scale: float = 2.0, shift: Any = None, **named: Any
    ) -> Any:
        total = x * scale if mask is None else x * mask * scale
        for value in [*rest, *named.values()]:
            total = total + value
        return total if shift is None else total - shift


class TwoInputs(nn.Module):
    """y = 2a + b."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 2 * a + b


class Block(nn.Module):
    """Linear, then ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return torch.relu(y)


class Nested(nn.Module):
    """Blocks in a list, layers in a Sequential, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Sequential(nn.Linear(3, 4), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        y = self.head(x)
        return y + y.exp()


class Cnn(nn.Module):
    """Convolution, batch norm, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():  # statistics of its own, so that a batch norm that is left out shows
            self.layers[1].running_mean.uniform_(-1, 1)
            self.layers[1].running_var.uniform_(0.5, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.layers(image)))


class Autocast(nn.Module):
    """A float32 model that computes in a lower precision itself."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = Cnn()
        self.dtype = dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.inner(image).float()


class Encoder(nn.Module):
    """A transformer encoder with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


class Recurrent(nn.Module):
    """An LSTM over (batch, 5, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.lstm(x)


class Conditional(nn.Module):
    """A branch on a value, as torch.cond."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.sin() * 2, lambda y: y.cos() + 1, (x,))
