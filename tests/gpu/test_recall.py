"""deploy() of what was deployed before, on a real GPU.

Enters: small networks and a cache. Leaves: proof that the shortcuts give the same module, that they are taken where
nothing has changed and only there, and that an engine that does not answer like the model is built anew. Apart from the
CPU tests, which look at keys, because only engines that run can be judged.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Tiny, tiny_inputs

REFITTABLE = t2e.BuildConfig(refittable=True)


def deployed(model: nn.Module, cache: Path, **options: Any) -> tuple[t2e.TRTModule, Mapping[str, float]]:
    """The module, and the phases that its deploy went through."""
    module = t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=cache, **options)
    assert isinstance(module, t2e.TRTModule)
    assert module.report is not None and module.report.passed
    return module, module.report.seconds


def net(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny().cuda().eval()


def error(module: nn.Module, model: nn.Module) -> float:
    inputs = tiny_inputs(7)
    with torch.no_grad():
        got, expected = module(*inputs)["logits"], model(*inputs)["logits"]
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_same_export_spares_the_steps_up_to_the_engine(precision: str, tmp_path: Path) -> None:
    """Export, engine and parity are left; report, ONNX and answers are those of the long road."""
    first, long = deployed(net(), tmp_path, precision=precision)
    second, short = deployed(net(), tmp_path, precision=precision)
    assert {"check", "build", "parity"} <= long.keys()
    assert set(short) == {"capture", "export", "reference", "recall", "parity"}
    inputs = tiny_inputs(5)
    assert torch.equal(first(*inputs)["logits"], second(*inputs)["logits"])
    assert first.report is not None and second.report is not None
    assert second.report.precision == first.report.precision
    assert second.report.lowering == first.report.lowering
    assert second.report.computed == first.report.computed
    assert len(second.report.parity) == 1
    assert any("come from the cache" in note for note in second.report.notes)
    saved = second.save(tmp_path / "saved.t2e")
    assert {"model.onnx", "model.plan", "runtime.cache"} <= {file.name for file in saved.iterdir()}
    assert t2e.precision_report(second).products == t2e.precision_report(first).products


def test_key_spares_the_export(tmp_path: Path) -> None:
    """With the caller's promise nothing is exported; the same key for other weights, or for another call, is."""
    _, long = deployed(net(), tmp_path, cache_key="tiny 1")
    module, short = deployed(net(), tmp_path, cache_key="tiny 1")
    assert "export" in long and set(short) == {"capture", "recall", "reference", "parity"}
    assert error(module, net()) < 1e-4
    for options in ({"cache_key": "tiny 2"}, {"cache_key": "tiny 1", "precision": "fp16"}):
        assert "export" in deployed(net(), tmp_path, **options)[1]
    other, phases = deployed(net(1), tmp_path, cache_key="tiny 1")
    assert "export" in phases
    assert error(other, net(1)) < 1e-4


@pytest.mark.parametrize("key", ["tiny", None])
def test_refittable_engine_takes_the_weights_of_the_moment(key: str | None, tmp_path: Path) -> None:
    """Other weights change nothing about the shortcut; saved, the engine has them, and no ONNX of the old ones."""
    first, _ = deployed(net(), tmp_path, cache_key=key, config=REFITTABLE)
    second, short = deployed(net(1), tmp_path, cache_key=key, config=REFITTABLE)
    assert "build" not in short and ("export" in short) == (key is None)
    assert error(second, net(1)) < 1e-4 and error(second, net()) > 1e-2
    assert not second.stale(net(1)) and second.stale(net())
    saved = second.save(tmp_path / "saved.t2e")
    assert not (saved / "model.onnx").exists()
    assert error(t2e.load(saved), net(1)) < 1e-4
    assert error(first, net()) < 1e-4
    third, _ = deployed(net(), tmp_path, cache_key=key, config=REFITTABLE)
    assert (third.save(tmp_path / "third.t2e") / "model.onnx").exists()


def test_broken_promise_is_found(tmp_path: Path) -> None:
    """An engine that does not answer like the model is deployed anew, with a warning, and then found again."""
    deployed(net(), tmp_path, cache_key="tiny")
    before, Tiny.forward = Tiny.forward, _doubled(Tiny.forward)
    try:
        with pytest.warns(UserWarning, match="is not taken, and the model is deployed anew: .*parity"):
            module, phases = deployed(net(), tmp_path, cache_key="tiny")
        assert "export" in phases
        assert error(module, net()) < 1e-4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "export" not in deployed(net(), tmp_path, cache_key="tiny")[1]
    finally:
        Tiny.forward = before


def _doubled(forward: Any) -> Any:
    def twice(self: Tiny, x: torch.Tensor, scale: torch.Tensor, factor: float = 2.0) -> dict[str, Any]:
        answer: dict[str, Any] = forward(self, x, scale, factor)
        return {**answer, "logits": answer["logits"] * 2}

    return twice


def test_engine_that_is_gone_is_built_again(tmp_path: Path) -> None:
    """A record of an engine is nothing without it."""
    deployed(net(), tmp_path, cache_key="tiny")
    t2e.EngineCache(tmp_path).clear()
    assert "build" in deployed(net(), tmp_path, cache_key="tiny")[1]


def test_calibration_data_are_read_unless_promised(tmp_path: Path) -> None:
    """Nobody knows whether they are the same, but the caller."""
    reads: list[int] = []

    def batches() -> Any:
        reads.append(1)
        yield tiny_inputs()

    deployed(net(), tmp_path, precision="fp16", calibration=batches(), cache_key="tiny")
    assert len(reads) == 1
    deployed(net(), tmp_path, precision="fp16", calibration=batches())
    assert len(reads) == 2
    _, short = deployed(net(), tmp_path, precision="fp16", calibration=batches(), cache_key="tiny")
    assert len(reads) == 2 and "export" not in short


def test_cached_weights_never_lie_beside_other_ones(tmp_path: Path) -> None:
    """What is kept of a refitted engine is whole, whichever kernels it was deployed for."""
    lazy = t2e.RuntimeConfig(kernel_specialization="lazy")
    deployed(net(), tmp_path, config=REFITTABLE, runtime_config=lazy)
    tolerance = t2e.Tolerance(rel_l2=1e-3, max_rel=1e-2)  # another request for the same engine
    deployed(net(1), tmp_path, config=REFITTABLE, runtime_config=lazy, tolerance=tolerance)
    found, _ = deployed(net(), tmp_path, config=REFITTABLE)
    saved = found.save(tmp_path / "saved.t2e")
    assert error(t2e.load(saved), net()) < 1e-4
    if (saved / "model.onnx").exists():
        again = t2e.TRTModule(t2e.build(saved / "model.onnx", {"batch": (1, 8, 32)}))
        x, scale = tiny_inputs(7)
        with torch.no_grad():
            expected = net()(x, scale)["logits"]
        got = again(x, scale)["logits"]
        assert float((got - expected).norm() / expected.norm()) < 1e-4


def test_kernels_are_made_where_the_cache_has_none(tmp_path: Path) -> None:
    """An engine that was first deployed for single shapes gets general kernels once, and then is found with them."""
    deployed(net(), tmp_path, runtime_config=t2e.RuntimeConfig(kernel_specialization="eager"))
    (entry,) = t2e.EngineCache(tmp_path).entries()
    assert not (entry.path / "runtime.cache").exists()
    assert "build" in deployed(net(), tmp_path)[1]
    assert (entry.path / "runtime.cache").exists()
    assert "build" not in deployed(net(), tmp_path)[1]
