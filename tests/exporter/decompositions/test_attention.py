"""Attention with PyTorch's semantics: every rank, mask, scale, dtype and device form.

Enters: queries, keys, values and masks. Leaves: proof that decomposition and ONNX graph answer as PyTorch does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.build_here import build_here
from tests.support.models import exported
from torch2engine.core.pytree import Inputs
from torch2engine.core.spec import Axis
from torch2engine.exporter.decompositions.attention import (
    ATTENTION,
    needs_exact_attention,
    scaled_dot_product_attention,
)
from torch2engine.onnx_graph.ort_session import OrtSession

GENERATOR = torch.Generator().manual_seed(0)
Q = torch.randn(2, 4, 3, 8, generator=GENERATOR)
K = torch.randn(2, 4, 5, 8, generator=GENERATOR)
V = torch.randn(2, 4, 5, 6, generator=GENERATOR)
SEEN = torch.rand(2, 1, 3, 5, generator=GENERATOR) > 0.4
SEEN[0, 0, 1] = False  # the second query of the first batch sees no key
FLOAT = torch.randn(2, 4, 3, 5, generator=GENERATOR).masked_fill(~SEEN, -math.inf)
aten = torch.ops.aten

CASES: dict[str, Callable[[Any], Tensor]] = {
    "2-D": lambda attend: attend(Q[0, 0], K[0, 0], V[0, 0]),
    "3-D": lambda attend: attend(Q[0], K[0], V[0]),
    "4-D": lambda attend: attend(Q, K, V),
    "5-D": lambda attend: attend(Q[None], K[None], V[None]),
    "3-D beside 4-D": lambda attend: attend(Q, K[0], V[0]),
    "one head for all": lambda attend: attend(Q, K[:1, :1], V[:1, :1]),
    "bool": lambda attend: attend(Q, K, V, SEEN),
    "bool of two dimensions": lambda attend: attend(Q, K, V, SEEN[0, 0]),
    "bool over queries": lambda attend: attend(Q, K, V, SEEN[..., :1]),
    "bool over keys": lambda attend: attend(Q, K, V, SEEN[:, :, :1]),
    "bool 3-D": lambda attend: attend(Q[0], K[0], V[0], SEEN[0]),
    "bool 5-D": lambda attend: attend(Q[None], K[None], V[None], SEEN[None]),
    "bool all false": lambda attend: attend(Q, K, V, torch.zeros_like(SEEN)),
    "float": lambda attend: attend(Q, K, V, FLOAT),
    "float of two dimensions": lambda attend: attend(Q, K, V, FLOAT[0, 0]),
    "float lowest": lambda attend: attend(Q, K, V, FLOAT.clamp(min=torch.finfo(torch.float32).min)),
    "float all -inf": lambda attend: attend(Q, K, V, torch.full((3, 5), -math.inf)),
    "causal": lambda attend: attend(Q, Q, Q, is_causal=True),
    "causal, more keys": lambda attend: attend(Q, K, V, is_causal=True),
    "causal, fewer keys": lambda attend: attend(K, Q, Q, is_causal=True),
    "scale": lambda attend: attend(Q, K, V, scale=0.7),
    "negative scale": lambda attend: attend(Q, K, V, SEEN, scale=-0.7),
    "scale 0": lambda attend: attend(Q, K, V, scale=0.0),
    "groups": lambda attend: attend(Q, K[:, :2], V[:, :2], SEEN, enable_gqa=True),
    "groups 3-D": lambda attend: attend(Q[0], K[0, :1], V[0, :2], enable_gqa=True),
    "groups 5-D": lambda attend: attend(Q[None], K[None, :, :2], V[None, :, :2], enable_gqa=True),
    "float16": lambda attend: attend(Q.half(), K.half(), V.half(), SEEN),
    "float16 and float32": lambda attend: attend(Q.half(), K.half(), V.half(), FLOAT),
    "float64": lambda attend: attend(Q.double(), K.double(), V.double(), FLOAT.double()),
}
# ONNX Runtime's CPU provider has no bfloat16; PyTorch refuses a mask beside is_causal in its plain form.
EAGER_CASES: dict[str, Callable[[Any], Tensor]] = {
    "bfloat16": lambda attend: attend(Q.bfloat16(), K.bfloat16(), V.bfloat16(), FLOAT.bfloat16()),
    "causal and bool": lambda attend: attend(Q, K, K, SEEN, is_causal=True),
    "causal and float": lambda attend: attend(Q, K, K, FLOAT, is_causal=True),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("case", [*CASES, *EAGER_CASES])
def test_decomposition_is_pytorchs_attention(case: str) -> None:
    """Shape, dtype and values are PyTorch's, with zeros where a query sees no key."""
    call = {**CASES, **EAGER_CASES}[case]
    found, right = call(scaled_dot_product_attention), call(functional.scaled_dot_product_attention)
    assert found.dtype == right.dtype and found.shape == right.shape
    torch.testing.assert_close(found, right, rtol=0.0, atol=TOLERANCE[right.dtype])


def _inputs_of(form: str, query: Tensor, mask: Tensor | None) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a device's form."""
    q, k, v = (query, K, V)
    if form.endswith("for_cpu"):
        return [q, k, v], {"attn_mask": mask}
    if form.endswith("flash_attention"):
        return [q, k, v], {}
    if form.endswith(("efficient_attention", "cudnn_attention")):
        return [q, k, v, mask, True], {}
    return [q, k, v, mask], {}


@pytest.mark.parametrize("form", [name for name in ATTENTION if name.startswith("_")])
@pytest.mark.parametrize("mask", [None, SEEN, FLOAT], ids=["none", "bool", "float"])
def test_device_forms_answer_alike(form: str, mask: Tensor | None) -> None:
    """Each form has as many results as its schema says, the first of which is the attention."""
    args, options = _inputs_of(form, Q, mask)
    found = ATTENTION[form](*args, **options)
    assert len(found) == len(getattr(aten, form).default._schema.returns)
    masked = not form.endswith("flash_attention")  # that form takes no mask
    right = functional.scaled_dot_product_attention(Q, K, V, mask if masked else None)
    torch.testing.assert_close(found[0], right, rtol=0.0, atol=2e-6)


def test_device_forms_second_result() -> None:
    """The weights of the plain form, and logsumexp of the others, are PyTorch's own."""
    weights = aten._scaled_dot_product_attention_math(Q, K, V, FLOAT)[1]
    torch.testing.assert_close(ATTENTION["_scaled_dot_product_attention_math"](Q, K, V, FLOAT)[1], weights)
    square = [Q, K, K]
    right = aten._scaled_dot_product_flash_attention_for_cpu(*square)[1]
    found = ATTENTION["_scaled_dot_product_flash_attention_for_cpu"](*square)[1]
    torch.testing.assert_close(found, right.reshape(found.shape) if right.shape != found.shape else right)


class _AllCases(nn.Module):
    """Every case that ONNX Runtime's CPU provider can run, added to 0 times the input."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        zero = x.sum() * 0

        def attend(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, **options: Any) -> Tensor:
            shift = zero.to(q.dtype)
            return functional.scaled_dot_product_attention(q + shift, k + shift, v + shift, *mask, **options)

        return {name: call(attend) for name, call in CASES.items()}


def test_exported_attention_is_pytorchs() -> None:
    """The ONNX graph of every case answers as PyTorch does."""
    artifact, _ = exported(_AllCases(), torch.ones(3))
    answers = OrtSession(artifact.onnx_path)({"x": np.ones(3, np.float32)})
    for name, call in CASES.items():
        right = call(functional.scaled_dot_product_attention)
        tolerance = max(TOLERANCE[right.dtype], 1e-6)  # torch.onnx writes Python's numbers as float32
        torch.testing.assert_close(torch.from_numpy(answers[name]), right, rtol=0.0, atol=tolerance)


def _masked(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True)


def _causal(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True) * mask.any()


class _Attention(nn.Module):
    """Attention over symbolic lengths, with a mask that is an input."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        return self.attend(q, k, mask)


AXES = {
    "q": {0: Axis("batch", 1, 2, 4), 2: Axis("length", 1, 3, 8)},
    "k": {0: Axis("batch", 1, 2, 4), 2: Axis("keys", 1, 5, 8)},
    "mask": {0: Axis("batch", 1, 2, 4), 2: Axis("length", 1, 3, 8), 3: Axis("keys", 1, 5, 8)},
}


@pytest.mark.parametrize(
    ("attend", "mask"),
    [(_masked, SEEN), (_masked, FLOAT[:, :1]), (_causal, SEEN)],
    ids=["bool", "float", "causal"],
)
def test_dynamic_attention_with_masked_rows(attend: Callable[..., Tensor], mask: Tensor) -> None:
    """Batch and both lengths stay symbolic; rows that see no key are zeros at other sizes too; RTX builds it."""
    model = _Attention(attend)
    artifact, _ = exported(model, Inputs(Q, K[:, :2], torch.ones_like(mask)), AXES)
    session = OrtSession(artifact.onnx_path)
    for batch, length, keys in [(2, 3, 5), (1, 1, 1), (1, 3, 2), (2, 1, 5)]:
        sizes = (Q[:batch, :, :length], K[:batch, :2, :keys], mask[:batch, :, :length, :keys])
        answer = session({name: part.numpy() for name, part in zip(["q", "k", "mask"], sizes, strict=True)})
        torch.testing.assert_close(torch.from_numpy(next(iter(answer.values()))), model(*sizes), rtol=0, atol=2e-6)
    build_here(artifact)


class Choice(nn.Module):
    """Attention of which the flags choose the form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("finite", torch.zeros(3, 3))
        self.register_buffer("causal", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor, given: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
        if self.form == "three dimensions":
            return functional.scaled_dot_product_attention(x[0], x[0], x[0])
        if self.form == "shared heads":
            return functional.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True)
        if self.form == "causal":
            return functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        masks = {
            "no mask": lambda: None,
            "least finite value": lambda: torch.where(flags == 0, torch.finfo(x.dtype).min, 0.0),
            "finite buffer": lambda: self.finite,
            "bool": lambda: flags == 1,
            "given": lambda: given,
            "infinity in the code": lambda: self.finite.masked_fill(flags == 0, -torch.inf),
            "infinity in a buffer": lambda: self.causal,
        }
        return functional.scaled_dot_product_attention(x, x, x, attn_mask=masks[self.form]())


@pytest.mark.parametrize(
    ("form", "exact"),
    [
        ("no mask", False),
        ("causal", False),
        ("least finite value", False),
        ("finite buffer", False),
        ("three dimensions", True),
        ("shared heads", True),
        ("bool", True),
        ("given", True),
        ("infinity in the code", True),
        ("infinity in a buffer", True),
    ],
)
def test_own_form_is_taken_only_where_it_is_needed(form: str, exact: bool) -> None:
    """torch.onnx's form stays where it is right, since TensorRT-RTX keeps 8-bit products before it."""
    inputs = (torch.randn(1, 2, 3, 4), torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.int64))
    program = torch.export.export(Choice(form).eval(), inputs, strict=False)
    assert needs_exact_attention(program) is exact
    assert needs_exact_attention(program, is_refittable=True) is (exact or form == "causal")
