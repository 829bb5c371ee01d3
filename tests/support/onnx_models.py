"""Small ONNX files, made by hand or by torch's own exporter.

Enters: a folder. Leaves: the path of a file in it. A room of its own because several tests of the builder start from
the same few models.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# for `deep`
DEEP_RANGES = {"batch": (1, 2, 4), "height": (8, 16, 32), "width": (8, 16, 32)}


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, tuple[int, Sequence[Any]]],
    weights: Mapping[str, Any] | None = None,
    opset: int = 20,
) -> Path:
    """Write a model whose inputs and outputs are given as name -> (element type, shape)."""
    values = [[helper.make_tensor_value_info(name, *spec) for name, spec in side.items()] for side in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", *values, tensors)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("my.domain", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return path


def relu(folder: Path, shape: Sequence[Any] = ("batch", 4), dtype: int = FLOAT) -> Path:
    """y = relu(x)."""
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    return save(folder / "relu.onnx", [node], {"x": (dtype, shape)}, {"y": (dtype, shape)})


def matmul(folder: Path, size: int = 64) -> Path:
    """y = x @ w, an operation that TF32 and the workspace limit have a say in."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")
    weights = {"w": np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)}
    return save(
        folder / "matmul.onnx", [node], {"x": (FLOAT, ["batch", size])}, {"y": (FLOAT, ["batch", size])}, weights
    )


def deep(folder: Path, layers: int) -> Path:
    """A chain of convolutions and softmaxes over a dynamic image, which takes seconds to build at 200 layers."""
    nodes: list[Any] = []
    before = "x"
    for layer in range(layers):
        conv, soft, after = (f"{kind}{layer}" for kind in ("conv", "soft", "y"))
        nodes.append(helper.make_node("Conv", [before, "w"], [conv], name=conv, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Softmax", [conv], [soft], name=soft, axis=1))
        nodes.append(helper.make_node("Add", [soft, before], [after], name=after))
        before = after
    weights = {"w": np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32)}
    shape = ["batch", 16, "height", "width"]
    return save(folder / "deep.onnx", nodes, {"x": (FLOAT, shape)}, {before: (FLOAT, shape)}, weights)


def unsupported(folder: Path) -> Path:
    """Three operators that TensorRT lacks, two of them with the origin that torch2engine's exporter writes."""
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="det"),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("BitwiseNot", ["bits"], ["inverted"], name="invert"),
        helper.make_node("Mystery", ["r"], ["m"], name="mystery", domain="my.domain"),
    ]
    for node, module, source in ((nodes[0], "head.volume", "model.py:12"), (nodes[2], "head.mask", "model.py:31")):
        for key, value in (("torch2engine.module", module), ("torch2engine.source", source)):
            node.metadata_props.add(key=key, value=value)
    return save(
        folder / "unsupported.onnx",
        nodes,
        {"x": (FLOAT, ["batch", 4, 4]), "bits": (TensorProto.INT32, [4])},
        {"d": (FLOAT, ["batch"]), "inverted": (TensorProto.INT32, [4]), "m": (FLOAT, ["batch", 4, 4])},
    )


class Cnn(nn.Module):
    """Convolution, batch norm, pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: (batch, 3, 16, 16) float32 -> (batch, 10)."""
        return self.head(self.layers(image))


class TwoInputs(nn.Module):
    """An MLP over two inputs of one batch, with two results."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 16)
        self.right = nn.Linear(4, 16)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a: (batch, 8), b: (batch, 4) float32 -> two of (batch, 16)."""
        left, right = self.left(a), self.right(b)
        return torch.relu(left + right), left - right


def torch_export(
    module: nn.Module, sample: tuple[torch.Tensor, ...], path: Path, axes: Sequence[Mapping[int, str]]
) -> Path:
    """Export as a user who doesn't know torch2engine would."""
    dims = {name: torch.export.Dim(name, min=1, max=64) for name in {name for one in axes for name in one.values()}}
    shapes = tuple({position: dims[name] for position, name in one.items()} for one in axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), sample, str(path), dynamo=True, dynamic_shapes=shapes, opset_version=20, verbose=False
        )
    return path
