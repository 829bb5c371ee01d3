"""Attention on the GPU: half precision runs fused kernels, whatever the mask; other attention is computed in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F

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
