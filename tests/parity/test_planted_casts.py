"""A Cast too many in an exported float32 graph is seen by parity, wherever its rounding reaches the answer.

Enters: exported models in which one tensor is cast to a low type and back. Leaves: proof that the judge refuses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import torch2engine as t2e
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.strict_rounding import EXACT_OPS
from torch2engine.onnx_graph.tensor_types import float32_tensors


class Branches(nn.Module):
    """A convolution, a residual branch, attention and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.normal_(self.attention.in_proj_weight)  # at the usual start every score is almost the same
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.conv(x).relu().flatten(2).transpose(1, 2)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(self.norm(h)), h.mean(1)


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Module, torch.Tensor, OnnxArtifact]:
    """The model, its sample, and its graph."""
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(2, 3, 6, 6)
    return model, x, t2e.export(model, x)


def with_cast(artifact: OnnxArtifact, name: str, low: int, folder: Path) -> OnnxArtifact:
    """The artifact with a Cast to a low type and back between a tensor and those who read it."""
    model = load_model(artifact.checked_onnx_path)
    nodes = list(model.graph.node)
    place = next((place + 1 for place, node in enumerate(nodes) if name in node.output), 0)
    for node in nodes:
        node.input[:] = [f"{name}/wide" if given == name else given for given in node.input]
    casts = [
        helper.make_node("Cast", [name], [f"{name}/low"], to=low),
        helper.make_node("Cast", [f"{name}/low"], [f"{name}/wide"], to=TensorProto.FLOAT),
    ]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *casts, *nodes[place:]])
    save_model(model, folder / "model.onnx")
    return artifact.replace(folder=folder)


def computed_tensors(artifact: OnnxArtifact) -> list[str]:
    """The input, and the float32 tensors that are computed and read; views and transposes of them don't count."""
    model = load_model(artifact.checked_onnx_path)
    float32 = float32_tensors(model)
    computed = [name for node in model.graph.node if node.op_type not in EXACT_OPS for name in node.output]
    read = {name for node in model.graph.node for name in node.input}
    return [name for name in ("x", *computed) if name in read & float32]


@pytest.mark.parametrize("low", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
def test_planted_cast_fails_parity_anywhere(low: int, exported: Any, tmp_path: Path) -> None:
    """Whichever tensor is rounded once more than in the model, the comparison on ONNX Runtime fails."""
    model, x, artifact = exported
    names = computed_tensors(artifact)
    assert len(names) > 8
    passed: list[str] = []
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        folder.mkdir()
        if t2e.check(model, with_cast(artifact, name, low, folder), x).passed:
            passed.append(name)
    assert passed == []


def test_graph_without_a_planted_cast_passes(exported: Any) -> None:
    """The same comparison passes the graph as it was exported."""
    model, x, artifact = exported
    assert t2e.check(model, artifact, x).passed
