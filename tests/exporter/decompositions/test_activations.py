"""Activations of tensors whose sizes are computed: PyTorch's values, in a form that TensorRT-RTX builds."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.support.build_here import build_here
from tests.support.models import error_of, exported
from torch2engine.core.spec import Axis
from torch2engine.exporter.decompositions.activations import ACTIVATIONS


class Decoder(nn.Module):
    """The end of a decoder for sound: a recurrent layer, then stages that cut off and pad by computed sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4)
        self.up = nn.ConvTranspose1d(4, 4, 4, stride=2)
        self.convolution = nn.Conv1d(4, 4, 3)
        self.activation = nn.ELU(alpha=0.7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
        for _ in range(2):
            x = self.up(self.activation(x))
            x = x[..., : x.shape[-1] - 2]
            x = x + self.convolution(functional.pad(self.activation(x), (2, 0), mode="reflect"))
        return self.activation(x)


def test_elu_of_a_computed_size_is_right_and_builds() -> None:
    """Every length gives PyTorch's answer."""
    torch.manual_seed(0)
    artifact, cases = exported(Decoder().eval(), torch.randn(2, 4, 8), {"x": {2: Axis("n", 4, 8, 16)}})
    assert error_of(artifact, cases) < 1e-5
    build_here(artifact)


def test_elu_of_a_known_size_stays_one_operator() -> None:
    """The table leaves it to torch.onnx, which has an operator for it."""
    assert ACTIVATIONS["elu"](torch.randn(2, 3)) is NotImplemented
