"""Weights of a refittable engine: each is the module's own, or a constant that the builder or the export has named.

TensorRT builds such engines on a GPU alone. Their networks are read everywhere, and a network has the names of weights.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx.parser
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch2engine as t2e
from tests.builder.rewrites.builder_input import network_of
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.builder.own_constants import constant_names, name_own_constants
from torch2engine.builder.parser_input import parser_input
from torch2engine.capture.weight_program import WeightProgram

BATCH = {0: t2e.Axis("batch", 1, 2, 4)}
LENGTH, HEADS, SIZE = 8, 4, 16
WIDTH = HEADS * SIZE


class Block(nn.Module):
    """Attention of one kind between two linear layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.join = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(1, HEADS, LENGTH, LENGTH))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
        options: dict[str, Any] = {
            "none": {},
            "bool": {"attn_mask": mask > 0},
            "additive": {"attn_mask": mask},
            "causal": {"is_causal": True},
            "bias of heads": {"attn_mask": self.bias},
            "groups": {"enable_gqa": True},
            "rotary": {},
        }[self.kind]
        if self.kind == "groups":
            key, value = key[:, :2], value[:, :2]
        if self.kind == "rotary":
            angles = torch.arange(LENGTH, device=x.device)[:, None] * torch.linspace(0, 1, SIZE, device=x.device)
            query, key = (
                part * angles.cos().to(x.dtype) + part.roll(1, -1) * angles.sin().to(x.dtype) for part in (query, key)
            )
        answer = F.scaled_dot_product_attention(query, key, value, **options)
        return self.join(answer.transpose(1, 2).flatten(2)) + mask.flatten(1).sum(1)[:, None, None]


class StaticCache(nn.Module):
    """One token of a decoder: its key and value go to their place in a cache of fixed length."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(
        self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, place: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        query, key, value = self.project(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
        positions = torch.arange(LENGTH, device=x.device)
        is_new = (positions == place[:, None])[:, None, :, None]
        keys, values = torch.where(is_new, key, keys), torch.where(is_new, value, values)
        seen = (positions <= place[:, None])[:, None, None, :]
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen), keys, values


class Triangles(nn.Module):
    """A causal mask as users write it, for any length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        scores = (x @ x.transpose(-2, -1)).masked_fill(places.triu(1), -100.0)
        return scores.tril() @ x


class Activated(nn.Module):
    """A linear layer, its relu and a product, between which the builder puts an Add of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu() * 2


def exported(model: nn.Module, dtype: torch.dtype, **inputs: torch.Tensor) -> t2e.OnnxArtifact:
    """Export a model for a refit, with a dynamic batch."""
    typed = {name: part.to(dtype) if part.is_floating_point() else part for name, part in inputs.items()}
    return t2e.export(model.to(dtype).eval(), tuple(typed.values()), dict.fromkeys(typed, BATCH), refittable=True)


def unknown_weights(artifact: t2e.OnnxArtifact, attention: str = "") -> list[str]:
    """The weights of the network that TensorRT-RTX reads which are neither the module's nor constants with a name.

    TensorRT's importer calls its own "tmp_weight" with a number. Those of type INT64 are sizes, and no weights.
    """
    program = WeightProgram.from_json(artifact.read(WEIGHTS))
    with network_of(artifact.checked_onnx_path, refittable=True, attention=attention) as network:
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        constants = [layer for layer in layers if layer.type.name == "CONSTANT"]
        numbers = [layer.name for layer in constants if layer.get_output(0).dtype.name != "INT64"]
        lost = [name for name in program.weights if not network.mark_weights_refittable(name)]
    assert not lost, "weights of the module"
    known = {*program.weights, *program.fixed}
    return [name for name in numbers if name not in known and not name.startswith("torch2engine.constant.")]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(
            (kind, torch.float16)
            for kind in ("none", "bool", "additive", "causal", "bias of heads", "groups", "rotary")
        ),
        *((kind, torch.bfloat16) for kind in ("none", "bool", "causal")),
    ],
    ids=str,
)
def test_attention_of_a_refittable_engine_has_the_modules_weights_alone(kind: str, dtype: torch.dtype) -> None:
    """Whatever the mask: TensorRT-RTX's importer makes two weights of its own for each Attention node."""
    x, mask = torch.randn(2, LENGTH, WIDTH), torch.zeros(2, 1, 1, LENGTH)
    assert unknown_weights(exported(Block(kind), dtype, x=x, mask=mask)) == []


def test_static_cache_of_a_refittable_engine_has_the_modules_weights_alone() -> None:
    """With keys and values that are no more than chosen, and a mask from the place."""
    cache = torch.randn(2, HEADS, LENGTH, SIZE)
    inputs = {"x": torch.randn(2, 1, WIDTH), "keys": cache, "values": cache, "place": torch.tensor([1, 2])}
    assert unknown_weights(exported(StaticCache(), torch.float16, **inputs)) == []


def test_triangles_of_a_refittable_engine_have_no_weights() -> None:
    """TensorRT's importer makes some for Trilu, as soon as the length is dynamic."""
    x = torch.randn(2, LENGTH, WIDTH)
    axes = {"x": {**BATCH, 1: t2e.Axis("length", 4, 8, 16)}}
    assert unknown_weights(t2e.export(Triangles().half().eval(), x.half(), axes, refittable=True)) == []


def test_node_would_have_weights_of_its_own() -> None:
    """The look at the network sees them, in the form that an engine without a refit gets."""
    x, mask = torch.randn(2, LENGTH, WIDTH), torch.zeros(2, 1, 1, LENGTH)
    artifact = exported(Block("bool"), torch.float16, x=x, mask=mask)
    assert len(unknown_weights(artifact, attention="node")) == 2


def test_constants_of_the_builder_are_known_by_their_names() -> None:
    """And those of the file keep theirs; an engine without a refit needs no names."""
    artifact = exported(Activated(), torch.float16, x=torch.randn(2, WIDTH))
    assert unknown_weights(artifact) == []
    path = artifact.checked_onnx_path
    before = constant_names(onnx.load(str(path)))
    for is_refittable in (True, False):
        changed = parser_input(path, is_rtx=True, cuts_sums=False, is_refittable=is_refittable)
        assert changed is not None
        new = constant_names(onnx.load_model_from_string(changed)) - before
        assert len(new) == 1
        assert (new == {"torch2engine.constant.0"}) == is_refittable
        onnx.checker.check_model(onnx.load_model_from_string(changed), full_check=True)


def test_constants_in_branches_are_renamed_with_their_readers() -> None:
    """An initializer that a branch reads, and a Constant node that is the branch's result."""
    text = """<ir_version: 10, opset_import: ["" : 20]> graph (bool c, float[2] x) => (float[2] y)
        <float[2] w = {1, 2}> {
            y = If (c) <
                then_branch = then () => (float[2] t) { t = Add(x, w) },
                else_branch = other () => (float[2] k) { k = Constant<value = float[2] {3, 4}>() }>
        }"""
    model = onnx.parser.parse_model(text)
    assert constant_names(model) == {"w", "k"}
    name_own_constants(model, frozenset({"other"}))
    onnx.checker.check_model(model, full_check=True)
    assert constant_names(model) == {"torch2engine.constant.0", "torch2engine.constant.1"}
    branches = {attribute.name: attribute.g for attribute in model.graph.node[0].attribute}
    assert branches["then_branch"].node[0].input[1] == model.graph.initializer[0].name
    assert branches["else_branch"].output[0].name == branches["else_branch"].node[0].output[0]
