"""Attention of fixed sizes becomes products in three dimensions, with the same answers and in one kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

import torch2engine as t2e
from tests.builder.rewrites.attention_models import answers, attention, operators, read
from tests.builder.rewrites.builder_input import changed_by
from tests.support.build_here import build_here
from torch2engine.builder.parser_input import parser_input
from torch2engine.builder.rewrites.attention_to_three_dimensions import fold_heads

FUSED = b"_gemm_mha"  # the name of TensorRT-RTX's kernel in a plan


@pytest.mark.parametrize("mask", ["", "key mask", "table", "full mask"])
def test_node_becomes_products_in_three_dimensions(tmp_path: Path, mask: str) -> None:
    """Whatever the mask; the last product has the node's name, by which reports look for it."""
    path = attention(tmp_path, mask=mask)
    model = read(changed_by(fold_heads, path))
    assert "Attention" not in operators(model)
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    (last,) = [node for node in model.graph.node if node.name == "attention"]
    assert last.op_type == "MatMul"
    assert len(shapes[last.output[0]]) == 3
    expected = answers(onnx.load(path))
    # float16 rounds by 5e-4; the two forms scale at different places.
    assert np.linalg.norm(answers(model) - expected) <= 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("form", ["bias", "windows"])
def test_products_with_a_bias_of_heads_are_folded_too(tmp_path: Path, form: str) -> None:
    """To the bit, and under their names; what stands between them stays."""
    path = attention(tmp_path, form)
    model = read(changed_by(fold_heads, path))
    assert np.array_equal(answers(model), answers(onnx.load(path)))
    names = [node.name for node in model.graph.node]
    assert all(names.count(name) == 1 for name in ("scores", "softmax", "attention"))
    assert operators(model).count("MatMul") == operators(onnx.load(path)).count("MatMul")


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": TensorProto.FLOAT},
        {"heads": 1},
        {"queries": "length"},
        {"is_linear": False},
        {"is_rotated": True},
        {"attributes": {"is_causal": 1}},
        {"attributes": {"softcap": 2.0}},
        {"attributes": {"scale": 1e-6}},
        {"attributes": {"scale": 1e6}},
    ],
    ids=str,
)
def test_other_attention_stays(tmp_path: Path, options: dict[str, Any]) -> None:
    """Without a kernel or fixed sizes, where products may become several kernels, or would compute something else."""
    assert changed_by(fold_heads, attention(tmp_path, **options)) is None


@pytest.mark.parametrize("options", [{"is_linear": False}, {"is_rotated": True}, {"heads": 1}], ids=str)
def test_other_products_stay(tmp_path: Path, options: dict[str, Any]) -> None:
    """As the builder has fused them before."""
    assert changed_by(fold_heads, attention(tmp_path, "bias", **options)) is None


@pytest.mark.parametrize("form", ["node", "bias", "windows"])
def test_attention_of_a_refittable_engine_stays(tmp_path: Path, form: str) -> None:
    """TensorRT would list the scale among the weights, and no module has it."""
    path = attention(tmp_path, form)
    assert parser_input(path, is_rtx=True, cuts_sums=False) is not None
    assert parser_input(path, is_rtx=True, cuts_sums=False, is_refittable=True) is None


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"has_bias": False},
        {"keys_of": "x"},
        {"mask": "key mask"},
        {"mask": "table", "has_bias": False},
        {"mask": "full mask"},
        {"form": "bias"},
        {"form": "windows", "keys_of": "x"},
        {"zeroes": ["batch", 1, 1, 1]},
    ],
    ids=str,
)
def test_folded_attention_is_one_kernel(tmp_path: Path, options: dict[str, Any], dtype: int) -> None:
    """After all changes for the builder: in a plan for any batch, and in one for a single batch."""
    path = attention(tmp_path, dtype=dtype, **options)
    assert parser_input(path, is_rtx=True, cuts_sums=False) is not None
    for sizes in ((2, 4, 8), (8, 8, 8)):
        assert FUSED in bytes(build_here(path, {"batch": sizes}).plan_buffer())


class Packed(nn.Module):
    """One linear layer for queries, keys and values, as in vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(64, 192)
        self.join = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        answer = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.join(answer.transpose(1, 2).flatten(2))


def test_exported_attention_is_folded(tmp_path: Path) -> None:
    """The form that export writes, in one kernel."""
    torch.manual_seed(0)
    batch = {"x": {0: t2e.Axis("batch", 1, 2, 8)}}
    artifact = t2e.export(Packed().half().eval(), torch.randn(2, 24, 64).half(), batch)
    artifact.save(tmp_path / "packed.t2e")
    model = read(parser_input(tmp_path / "packed.t2e" / "model.onnx", is_rtx=True, cuts_sums=False))
    assert "Attention" not in operators(model)
    assert any("/fold_" in node.name for node in model.graph.node)
    assert FUSED in bytes(t2e.build(artifact).plan_buffer())
