"""Attention on the GPU: half precision runs fused kernels, whatever the mask; other attention is computed in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import torch2engine as t2e
from tests.support import onnx_models

BATCH = t2e.Axis("batch", 1, 2, 4)


class Attentions(nn.Module):
    """Three blocks in turn: all keys, the keys of a mask, and the keys before."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(256, 768) for _ in range(3)])

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        options = ({}, {"attn_mask": seen[:, None, None, :]}, {"is_causal": True})
        for projection, option in zip(self.projections, options, strict=True):
            query, key, value = projection(x).unflatten(-1, (3, 4, 64)).permute(2, 0, 3, 1, 4)
            x = x + F.scaled_dot_product_attention(query, key, value, **option).transpose(1, 2).flatten(2)
        return x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_attention_runs_fused(dtype: torch.dtype) -> None:
    """One kernel for each block, and answers that parity accepts at every size."""
    torch.manual_seed(0)
    model = Attentions().to("cuda", dtype).eval()
    seen = torch.ones(2, 96, dtype=torch.bool, device="cuda")
    seen[1, 70:] = False
    sample = (torch.randn(2, 96, 256, dtype=dtype, device="cuda"), seen)
    module = t2e.deploy(model, sample, {"x": {0: BATCH}, "seen": {0: BATCH}}, cache=False)
    module(*sample)
    assert module.layers().count("mha") >= 3, module.layers()


class Windows(nn.Module):
    """Two blocks of Swin on 14 x 14 places: windows of 7 x 7, and the same shifted by 3 with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(64, 192) for _ in range(2)])
        self.results = nn.ModuleList([nn.Linear(64, 64) for _ in range(2)])
        self.biases = nn.ParameterList([nn.Parameter(torch.randn(1, 2, 49, 49)) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, shift in enumerate((0, 3)):
            shifted = torch.roll(x, (-shift, -shift), (1, 2))
            windows = shifted.unflatten(2, (2, 7)).unflatten(1, (2, 7)).transpose(2, 3).reshape(-1, 49, 64)
            query, key, value = self.projections[block](windows).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
            scores = query * 32**-0.5 @ key.transpose(-2, -1) + self.biases[block]
            if shift:
                scores = (scores.view(-1, 4, 2, 49, 49) + self.mask(x, shift)[:, None]).view(-1, 2, 49, 49)
            answer = self.results[block]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
            whole = answer.view(-1, 2, 2, 7, 7, 64).transpose(2, 3).reshape(-1, 14, 14, 64)
            x = x + torch.roll(whole, (shift, shift), (1, 2))
        return x

    def mask(self, x: torch.Tensor, shift: int) -> torch.Tensor:
        """[windows, 49, 49]: -100 for places that only the shift has brought together."""
        places = x.new_zeros(14, 14)
        for number, part in enumerate((slice(0, -7), slice(-7, -shift), slice(-shift, None))):
            places[part] += 3 * number
            places[:, part] += number
        windows = places.view(2, 7, 2, 7).transpose(1, 2).reshape(4, 49)
        return (windows[:, None] - windows[:, :, None]).ne(0).to(x.dtype) * -100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_attention_in_windows_runs_fused(dtype: torch.dtype) -> None:
    """With the bias of relative positions, shifted or not, at every batch."""
    torch.manual_seed(0)
    model = Windows().to("cuda", dtype).eval()
    sample = torch.randn(2, 14, 14, 64, dtype=dtype, device="cuda")
    module = t2e.deploy(model, sample, {"x": {0: BATCH}}, cache=False)
    module(sample)
    assert module.layers().count("mha") >= 2, module.layers()


class Encoder(nn.Module):
    """A block of BERT: three linear layers, a mask of keys, and a query whose keys may all be masked."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(256, 256) for _ in range(3)])
        self.join = nn.Linear(256, 256)
        self.norm = nn.LayerNorm(256)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        query, key, value = (layer(x).unflatten(-1, (4, 64)).transpose(1, 2) for layer in self.projections)
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :])
        return self.norm(x + self.join(answer.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_three_linear_layers_and_rows_of_zeros_run_fused(dtype: torch.dtype) -> None:
    """Where all keys of a row are masked, its answer is zero."""
    torch.manual_seed(0)
    model = Encoder().to("cuda", dtype).eval()
    seen = torch.ones(2, 96, dtype=torch.bool, device="cuda")
    seen[0, 70:] = False
    seen[1] = False
    sample = (torch.randn(2, 96, 256, dtype=dtype, device="cuda"), seen)
    module = t2e.deploy(model, sample, {"x": {0: BATCH}, "seen": {0: BATCH}}, cache=False)
    module(*sample)
    assert module.layers().count("mha") >= 1, module.layers()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused kernels give such rows an average
        expected = model(*sample).double()
    error = (module(*sample).double() - expected).norm() / expected.norm()
    assert error <= (1e-2 if dtype is torch.float16 else 4e-2), error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [Encoder, Attentions])
def test_refittable_attention_runs_fused_and_follows_its_model(kind: type[nn.Module], dtype: torch.dtype) -> None:
    """With every mask; after a refit the answers are those of a new engine, to the last bit."""
    torch.manual_seed(0)
    model = kind().to("cuda", dtype).eval()
    seen = torch.ones(2, 96, dtype=torch.bool, device="cuda")
    seen[0, 70:] = False
    seen[1] = False
    sample = (torch.randn(2, 96, 256, dtype=dtype, device="cuda"), seen)

    def deployed() -> nn.Module:
        config = t2e.BuildConfig(refittable=True)
        return t2e.deploy(model, sample, {"x": {0: BATCH}, "seen": {0: BATCH}}, cache=False, config=config)

    module: Any = deployed()
    module(*sample)
    assert module.layers().count("mha") >= (3 if kind is Attentions else 1), module.layers()
    torch.manual_seed(1)
    model.load_state_dict(kind().to("cuda", dtype).state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # the old answer is far off then: by a quarter of its size in float32, or more
    before = module(*sample)
    assert module.refit().changed
    answer = module(*sample)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused kernels average a row whose keys are all masked
        expected = model(*sample).double()
    bound = 1e-2 if dtype is torch.float16 else 4e-2
    assert (answer.double() - expected).norm() <= bound * expected.norm()
    assert (before.double() - expected).norm() > 2 * bound * expected.norm()
    assert torch.equal(answer, deployed()(*sample))


class Activated(nn.Module):
    """A linear layer, its relu and a product: the builder puts an Add of zero between the last two."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu() * 2


def test_constants_of_the_builder_are_no_weights_for_a_refit() -> None:
    """The zero follows from no module; a refit leaves it as it is."""
    torch.manual_seed(0)
    model = Activated().cuda().half().eval()
    x = torch.randn(2, 64, device="cuda").half()
    config = t2e.BuildConfig(refittable=True)
    module: Any = t2e.deploy(model, x, {"x": {0: BATCH}}, cache=False, config=config)
    with torch.no_grad():
        model.linear.weight.mul_(-1)
    assert module.refit().parity is not None
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=1e-2, atol=1e-2)


def test_float32_attention_node_is_right_in_parts(tmp_path: Path) -> None:
    """A file from elsewhere may have the node, and TensorRT-RTX 1.6 has no fused kernel for float32."""
    sizes = {name: (TensorProto.FLOAT, ["batch", 2, 8, 16]) for name in ("query", "key", "value")}
    nodes = [
        *(helper.make_node("Mul", [name, "two"], [f"{name}2"]) for name in sizes),
        helper.make_node("Attention", ["query2", "key2", "value2"], ["y"]),
    ]
    result = {"y": (TensorProto.FLOAT, ["batch", 2, 8, 16])}
    path = onnx_models.save(tmp_path / "float.onnx", nodes, sizes, result, {"two": np.float32(2)}, opset=23)
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((3, 2, 8, 16), dtype=np.float32) for name in sizes}
    expected = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    module = t2e.TRTModule(t2e.build(path, {"batch": (1, 2, 4)}))
    found = module(**{name: torch.from_numpy(feed).cuda() for name, feed in feeds.items()})
    (answer,) = found.values() if isinstance(found, dict) else (found,)
    np.testing.assert_allclose(answer.cpu().numpy(), expected, atol=1e-4)
