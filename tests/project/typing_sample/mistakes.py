# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Mistakes that a type checker finds before anything runs; an ignore that is not needed is an error itself."""

from __future__ import annotations

import torch
from torch import nn

import torch2engine as t2e


class Scale(nn.Module):
    """A model with types."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice the input."""
        return x * 2


def mistaken(model: Scale, sample: torch.Tensor) -> None:
    """One mistake a line."""
    module = t2e.deploy(model, sample, runtime="onnxruntime", precision="fp32")
    module("a path")  # type: ignore[arg-type]  # forward takes a tensor
    module(sample, 2)  # type: ignore[call-arg]  # and nothing else
    t2e.Precision("fp17")  # type: ignore[arg-type]  # no such precision
    t2e.BuildConfig(flavour="trt")  # type: ignore[arg-type]  # no such flavour
    assert t2e.depoly  # type: ignore[attr-defined]  # no such name
    t2e.deploy(model, sample, runtime="trt")  # type: ignore[call-overload]  # no such runtime
    t2e.deploy(model, sample, precison="fp16")  # type: ignore[call-overload]  # no such option
