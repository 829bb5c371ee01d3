"""`module.explain` on a GPU: planted slow cases are named, with times that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.test_attention import Attentions

WIDE = t2e.Axis("batch", 1, 1, 64)


def names(module: t2e.TRTModule, sample: object) -> set[str]:
    """What explain finds."""
    return {finding.name for finding in module.explain(sample).findings}


@pytest.fixture(scope="module")
def tiny() -> t2e.TRTModule:
    """So little work that launching it is all that counts, in one wide profile."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).cuda().eval()
    return t2e.deploy(model, torch.rand(2, 16, device="cuda"), {"input": {0: WIDE}}, cache=False)


def test_tiny_model_at_batch_one_is_host_bound_in_a_wide_profile(tiny: t2e.TRTModule) -> None:
    """And eight entries take no longer than one."""
    found = names(tiny, torch.rand(1, 16, device="cuda"))
    assert {"host-bound", "small batch", "wide profile"} <= found, found


def test_calls_on_a_stream_of_its_own_are_not_advised_to_use_one(tiny: t2e.TRTModule) -> None:
    """Both streams are timed only where the caller is on the default one."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = names(tiny, torch.rand(64, 16, device="cuda"))
    assert not {"default stream", "small batch"} & found, found


def test_transposed_input_is_a_copy_in_every_call(tiny: t2e.TRTModule) -> None:
    """The engine reads rows."""
    assert "copies" in names(tiny, torch.rand(16, 8, device="cuda").t())


def test_module_keeps_its_memory_while_it_is_explained(tiny: t2e.TRTModule) -> None:
    """The first call is that of a copy, and answers are as before."""
    x = torch.rand(4, 16, device="cuda")
    before = tiny(x)
    memory = tiny.memory_bytes
    tiny.explain(x)
    assert tiny.memory_bytes >= memory > 0
    assert torch.equal(tiny(x), before)


def test_large_products_are_not_host_bound() -> None:
    """The GPU has work for milliseconds, and more entries take as much longer."""
    model = nn.Sequential(*[nn.Linear(4096, 4096) for _ in range(4)]).cuda().eval()
    axes = {"input": {0: t2e.Axis("batch", 2048, 4096, 16384)}}
    module = t2e.deploy(model, torch.rand(4096, 4096, device="cuda"), axes, cache=False)
    found = names(module, torch.rand(4096, 4096, device="cuda"))
    assert not {"host-bound", "small batch", "default stream"} & found, found


def test_float32_attention_is_unfused_and_half_is_not(tmp_path: Path) -> None:
    """TensorRT-RTX has no fused kernel for float32. The finding is saved with the engine."""
    torch.manual_seed(0)
    seen = torch.ones(2, 96, dtype=torch.bool, device="cuda")
    batch = t2e.Axis("batch", 1, 2, 4)
    found: dict[torch.dtype, list[t2e.Finding]] = {}
    for dtype in (torch.float32, torch.float16):
        sample = (torch.randn(2, 96, 256, dtype=dtype, device="cuda"), seen)
        model = Attentions().to("cuda", dtype).eval()
        module = t2e.deploy(model, sample, {"x": {0: batch}, "seen": {0: batch}}, cache=False)
        loaded = t2e.load(module.save(tmp_path / f"{dtype}.t2e"))
        assert loaded.report.findings == module.report.findings
        found[dtype] = [one for one in module.report.findings if one.name == "unfused attention"]
    assert found[torch.float16] == []
    (finding,) = found[torch.float32]
    assert "of 3 attention blocks" in finding.measured


def test_engine_from_the_cache_has_the_findings_of_its_deploy(tmp_path: Path) -> None:
    """They are stored with the record, and not looked for again."""
    model, sample = nn.Linear(16, 4).cuda().eval(), torch.rand(2, 16, device="cuda")
    first = t2e.deploy(model, sample, {"input": {0: WIDE}}, cache=tmp_path)
    second = t2e.deploy(model, sample, {"input": {0: WIDE}}, cache=tmp_path)
    assert any("come" in note and "cache" in note for note in second.report.notes)
    assert [one.name for one in second.report.findings] == ["wide profile"]
    assert second.report.findings == first.report.findings
