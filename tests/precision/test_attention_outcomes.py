"""`torch2engine.precision.graph.attention_outcomes`: which attention is fused, and why other attention is not.

Enters: graphs that torch.onnx wrote, and layers by the names of their nodes. Leaves: proof that each outcome is told by
module, with a reason where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch2engine as t2e
from torch2engine.core.precision_report import AttentionOutcome
from torch2engine.onnx_graph.attention_blocks import find_attention_blocks
from torch2engine.precision.graph.attention_outcomes import attention_outcomes
from torch2engine.precision.graph.engine_layers import Layer, Multiplies, layers_of_modules


class Attention(nn.Module):
    """Attention of a tensor with changed copies of itself."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (x, x + 1, x * 2)]
        return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


@pytest.fixture(scope="module")
def exported() -> t2e.OnnxArtifact:
    """Two blocks in float16, whose heads have 16 and 8 entries."""
    return t2e.export(nn.Sequential(Attention(2), Attention(4)).half().eval(), torch.randn(2, 4, 32).half())


def outcomes(exported: t2e.OnnxArtifact, layers: Sequence[Layer] = ()) -> tuple[AttentionOutcome, ...]:
    model: Any = onnx.load(str(exported.onnx_path))
    return attention_outcomes(model, exported.folder, layers)


SMALL = "its heads have 8 entries; fused kernels take 16 to 256, in multiples of 8"


def test_graph_tells_which_attention_can_be_fused(exported: t2e.OnnxArtifact) -> None:
    """Without an engine it is open whether a kernel takes it."""
    assert outcomes(exported) == (AttentionOutcome("0", None), AttentionOutcome("1", None, SMALL))


def test_layers_tell_which_attention_is_fused(exported: t2e.OnnxArtifact) -> None:
    """Products that are layers of their own are not fused; what TensorRT fuses by itself is, whatever the graph."""
    first, second = find_attention_blocks(onnx.load(str(exported.onnx_path)))
    fused = [
        Layer(f"mha {block.module}", "kgen", (block.result,), "fp16", Multiplies.MAYBE) for block in (first, second)
    ]
    own = [Layer("gemm", "gemm", (block.scores,), "fp16", Multiplies.SURELY) for block in (first, second)]
    chosen = "TensorRT has chosen kernels of their own for its products"
    assert outcomes(exported, fused) == (AttentionOutcome("0", True), AttentionOutcome("1", True))
    assert outcomes(exported, [fused[0], own[1]]) == (AttentionOutcome("0", True), AttentionOutcome("1", False, SMALL))
    assert outcomes(exported, [own[0], fused[1]]) == (AttentionOutcome("0", False, chosen), AttentionOutcome("1", True))


def test_layers_are_counted_by_module_and_precision() -> None:
    """A layer of two modules counts in both; one without numbers is told apart; an unknown node counts nowhere."""
    layers = [
        Layer("both", "gemm", ("a", "b"), "fp16"),
        Layer("wide", "kgen", ("b",), "fp32"),
        Layer("indices", "gather", ("b",), ""),
        Layer("reformat", "copy", ("nowhere",), "fp16"),
    ]
    assert layers_of_modules(layers, {"b": "second", "a": "first"}) == {
        "second": {"fp16": 1, "fp32": 1, "other": 1},
        "first": {"fp16": 1},
    }
