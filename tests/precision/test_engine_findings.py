"""`torch2engine.precision.graph.engine_findings`: what makes an engine slow is named, with figures and a way out.

Enters: an engine that TensorRT-RTX built here, layers of real engines in `inspected`, and graphs that torch.onnx wrote.
Leaves: proof that each rule sees a planted case, and says nothing about a good one.
"""

from __future__ import annotations

import ast
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch2engine as t2e
from tests.support.deploy_models import Mlp, sample, seeded
from tests.support.paths import SUPPORT
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.core.precision_report import MultiplyAddNode
from torch2engine.core.spec import Axis, Profile, Signature, TensorSpec
from torch2engine.onnx_graph.attention_blocks import AttentionBlock, find_attention_blocks
from torch2engine.precision.graph.engine_findings import (
    engine_findings,
    layer_findings,
    precision_findings,
    profile_findings,
)
from torch2engine.precision.graph.engine_layers import Layer, engine_precisions, read_layers


def layers_of(name: str) -> tuple[Layer, ...]:
    """The layers of an engine that was built on an H200."""
    return read_layers((SUPPORT / "inspected" / f"{name}.json").read_text(encoding="utf-8"))


def products_of(name: str) -> list[MultiplyAddNode]:
    """The products of its graph, each with the precision that the engine computes it in."""
    products = json.loads((SUPPORT / "inspected" / f"{name}.json").read_text(encoding="utf-8"))["products"]
    nodes = [MultiplyAddNode(node, op, node, precision, 1) for node, (op, precision) in products.items()]
    computed_in = engine_precisions(layers_of(name), nodes)
    return [MultiplyAddNode(n.name, n.op, n.module, n.precision, 1, computed_in[n.name]) for n in nodes]


def bert_blocks() -> list[AttentionBlock]:
    """The three attention blocks of the BERT in `inspected`, by the names of its graph."""
    ends = ((66, 68, ""), (126, 128, "_1"), (186, 188, "_2"))
    return [
        AttentionBlock(
            f"node_MatMul_{scores}", f"node_Softmax_{softmax}", f"node_scaled_dot_product_attention{end}", f"layer{end}"
        )
        for scores, softmax, end in ends
    ]


def test_wide_profile_is_named_and_its_cure_builds() -> None:
    """The suggested profiles, as they are printed, cover the same sizes; the real engine of them has no finding."""
    exported = t2e.export(seeded(Mlp).eval(), sample(4, 6), {"x": {0: Axis("batch", 1, 2, 64)}})
    (finding,) = profile_findings(exported.signature, exported.profiles)
    assert finding.name == "wide profile"
    assert finding.measured == ("axis 'batch' of profile 0 is 1..64 with opt 2: its largest size is 32 times its opt")
    profiles = ast.literal_eval(finding.suggestion.partition("profiles=")[2])
    assert (profiles[0]["batch"][0], profiles[1]["batch"][2]) == (1, 64)
    assert profiles[0]["batch"][2] == profiles[1]["batch"][0]
    engine = t2e.build(exported, profiles, config=t2e.BuildConfig(flavour="tensorrt_rtx"), cache=False)
    assert engine_findings(engine) == ()


@pytest.mark.parametrize(
    ("ranges", "step", "expected"),
    [
        ((1, 8, 32), 1, None),
        ((1, 8, 64), 1, [(1, 8, 23), (23, 38, 64)]),
        ((1, 32, 32), 1, [(1, 2, 6), (6, 32, 32)]),
        ((8, 8, 512), 8, [(8, 8, 64), (64, 184, 512)]),
    ],
)
def test_profile_is_cut_where_it_is_wide(
    ranges: tuple[int, int, int], step: int, expected: list[tuple[int, int, int]] | None
) -> None:
    """Above opt or below it, in sizes that the axis takes; the other axes stay as they are."""
    axes = (Axis("batch", *ranges, multiple_of=step), Axis("length", 4, 6, 8))
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("batch", "length")),),
        outputs=(TensorSpec("y", "float32", ("batch",)),),
        axes=axes,
    )
    found = profile_findings(signature, [Profile({axis.name: axis.range for axis in axes})])
    if expected is None:
        assert found == []
        return
    profiles = [{"batch": half, "length": (4, 6, 8)} for half in expected]
    assert [one.suggestion for one in found] == [f"two profiles: profiles={profiles}"]


def test_batch_that_is_fixed_at_one_is_named() -> None:
    """The cure names every input; a fixed larger batch, and one that may grow, are fine."""
    y = (TensorSpec("y", "float32", (1,)),)

    def found(*shapes: tuple[int | str, ...]) -> list[str]:
        inputs = tuple(TensorSpec(f"x{index}", "float32", shape) for index, shape in enumerate(shapes))
        axes = (Axis("n", 1, 2, 4),) if "n" in {dim for shape in shapes for dim in shape} else ()
        return [one.suggestion for one in profile_findings(Signature(inputs=inputs, outputs=y, axes=axes), [])]

    assert found((1, 3), (1, 5)) == [
        "if entries are independent, a sample of several with dynamic_axes={'x0': {0: 'batch'}, 'x1': {0: 'batch'}}"
    ]
    assert found((1, 3), (2, 5)) == found(("n", 3)) == found() == []


def test_size_of_a_live_parameter_is_no_batch() -> None:
    """A scale of 16 channels neither hides a batch of one, nor is it named in the cure."""
    inputs = (
        TensorSpec("x", "float32", (1, 8)),
        TensorSpec("scale", "float32", (16,), live=LiveParameter("scale", "parameter")),
    )
    y = (TensorSpec("y", "float32", (1, 8)),)
    (finding,) = profile_findings(Signature(inputs=inputs, outputs=y, axes=()), [])
    assert "'x': {0: 'batch'}" in finding.suggestion
    assert "scale" not in finding.suggestion


def test_precision_that_the_engine_does_not_take_is_named() -> None:
    """TensorRT-RTX has no fp8 kernel for depthwise convolutions; float32 in the graph is no such case."""
    (finding,) = precision_findings(products_of("convnext.fp8"))
    assert finding.name == "precision not taken"
    assert "(fp8 in fp32): 'node_conv2d_1', 'node_conv2d_2', 'node_conv2d_3', 'node_conv2d_5'" in finding.measured
    assert precision_findings(products_of("resnet50.fp16")) == []


def test_float32_islands_are_named_with_their_share() -> None:
    """A whole model in float32 has none, and neither have products that hardly count."""
    low, high = (
        MultiplyAddNode("a", "Gemm", "stem", "fp16", 60, "fp16"),
        MultiplyAddNode("b", "Conv", "head", "fp32", 40),
    )
    (finding,) = precision_findings([low, high])
    assert (finding.name, finding.measured) == (
        "float32 islands",
        "1 of 2 products, with 40.0 % of the multiply-adds, are in float32: 'head'",
    )
    assert precision_findings([high]) == []
    assert precision_findings([low, MultiplyAddNode("c", "Gemm", "head", "fp32", 0)]) == []


def test_layers_that_only_move_data_are_counted() -> None:
    """A bidirectional LSTM in TensorRT-RTX has a reshape and a cast for each product; a ResNet has none."""
    (finding,) = layer_findings(layers_of("lstm.fp16"), [])
    assert (finding.name, finding.measured) == (
        "reformats",
        "56 of 112 layers only move or convert data (cast, reshape)",
    )
    assert layer_findings(layers_of("resnet.bf16"), []) == []


def test_attention_in_separate_products_is_named() -> None:
    """BERT in float16 runs fused kernels. With a product of its own for one block, that block is named."""
    layers = layers_of("bert.fp16")
    assert layer_findings(layers, bert_blocks()) == []
    unfused = Layer("gemm", "gemm", ("node_MatMul_126",), "fp16", layers_of("resnet50.fp16")[0].multiplies)
    (finding,) = layer_findings([*layers, unfused], bert_blocks())
    assert (finding.name, finding.measured) == (
        "unfused attention",
        "separate products in fp16 compute 1 of 3 attention blocks: 'layer_1'",
    )
    in_float32 = Layer("gemm", "gemm", ("node_MatMul_126",), "fp32", unfused.multiplies)
    (finding,) = layer_findings([in_float32], bert_blocks())
    assert finding.suggestion.startswith("precision='fp16'")


class ByHand(nn.Module):
    """Attention as matrix products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax((x @ x.transpose(-1, -2)) / 4, dim=-1) @ x


class TwoAttentions(nn.Module):
    """PyTorch's own attention with a mask, one by hand, and a softmax that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.by_hand = ByHand()

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.by_hand(F.scaled_dot_product_attention(x, x, x, attn_mask=mask))
        return torch.softmax(x.mean(dim=(1, 2)), dim=-1)


def test_attention_is_found_in_an_exported_graph() -> None:
    """Each block has its two products and its module; the softmax at the end has no product behind it."""
    import onnx

    x = torch.rand(2, 4, 8, 16)
    exported = t2e.export(TwoAttentions(), (x, torch.ones(8, 8, dtype=torch.bool)))
    model = onnx.load(str(exported.onnx_path))
    kinds = {node.name: node.op_type for node in model.graph.node}
    blocks = find_attention_blocks(model)
    assert [(kinds[b.scores], kinds[b.softmax], kinds[b.result]) for b in blocks] == [
        ("MatMul", "Softmax", "MatMul")
    ] * 2
    assert len({name for b in blocks for name in (b.scores, b.result)}) == 4
    assert [b.module for b in blocks] == ["", "by_hand"]
