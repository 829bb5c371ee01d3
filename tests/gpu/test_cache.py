"""The engine cache under deploy(), on a real GPU.

Enters: a small network, deployed again and again. Leaves: proof that the second time nothing is built or compiled, that
the answers are the same, and that an engine that parity refuses is not kept. Apart from the CPU tests because parity
and compiled kernels need engines that run.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Tiny, tiny_inputs
from torch2engine.builder import load_or_build as room


def never(*args: Any, **options: Any) -> None:
    raise AssertionError("built")


def test_second_deploy_takes_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its kernels, compared with the model again; other weights are another engine."""
    torch.manual_seed(0)
    model, cache = Tiny().cuda().eval(), t2e.EngineCache(tmp_path)
    first = t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=cache)
    (entry,) = cache.entries()
    assert (entry.path / "runtime.cache").stat().st_size > 0
    monkeypatch.setattr(room, "compile_in_child", never)
    second = t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=tmp_path)
    assert isinstance(first, t2e.TRTModule)
    assert isinstance(second, t2e.TRTModule)
    assert second.report is not None
    assert second.report.passed
    assert [table.subject for table in second.report.parity] == [f"PyTorch vs {second.runtime}"]
    inputs = tiny_inputs(5)
    assert torch.equal(first(*inputs)["logits"], second(*inputs)["logits"])
    with torch.no_grad():
        model.head.bias.add_(1e-3)
    with pytest.raises(AssertionError, match="built"):
        t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=cache)
    with pytest.raises(AssertionError, match="built"):
        t2e.deploy(Tiny().cuda().eval(), tiny_inputs(), TINY_AXES, cache=False)
    assert len(cache.entries()) == 1


def test_deploy_that_is_cancelled_right_after_the_build_frees_the_engines_lock(tmp_path: Path) -> None:
    """The next deploy waits for nobody, though the error of the first one is still held with its traceback."""
    model = Tiny().cuda().eval()

    def stop(phase: str, step: int, steps: int, seconds: float) -> bool:
        return not (phase == "build" and step == steps)

    with pytest.raises(t2e.BuildError) as stopped:
        t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=tmp_path, progress=stop)
    assert stopped.value.cancelled

    def refuse_to_wait(phase: str, step: int, steps: int, seconds: float) -> bool:
        return not phase.startswith("waiting")

    again = t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=tmp_path, progress=refuse_to_wait)
    assert again.report is not None and again.report.passed


@pytest.mark.parametrize("elsewhere", ["version", "GPU"])
def test_engine_of_other_hardware_is_built_anew(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """load() refuses it, or builds it for this GPU once; the answers are the model's, and what is saved runs here."""
    torch.manual_seed(0)
    model = Tiny().cuda().eval()
    config = t2e.BuildConfig(compute_capabilities=((7, 5),) if elsewhere == "GPU" else ())
    engine = t2e.build(t2e.export(model, tiny_inputs(), TINY_AXES), config=config)
    if elsewhere == "version":
        engine = engine.replace(hardware=dataclasses.replace(engine.hardware, flavour_version="1.0.0.1"))
    path = engine.save(tmp_path / "model.t2e")
    with pytest.raises(t2e.ArtifactError, match="load it with on_mismatch='rebuild'; or rebuild it here: "):
        t2e.load(path)
    with pytest.warns(UserWarning, match="building the engine of '.*' anew for this machine: got a plan "):
        module = t2e.load(path, runtime="tensorrt", on_mismatch="rebuild", cache=tmp_path / "cache")
    t2e.testing.assert_parity(model, module, tiny_inputs(5))
    saved = t2e.load(module.save(tmp_path / "here.t2e"), runtime="tensorrt")
    monkeypatch.setattr(room, "compile_in_child", never)
    with pytest.warns(UserWarning, match="anew"):
        again = t2e.load(path, on_mismatch="rebuild", cache=tmp_path / "cache")
    inputs = tiny_inputs(3)
    for loaded in (saved, again):
        assert torch.equal(loaded(*inputs)["logits"], module(*inputs)["logits"])


def test_bundle_gives_the_engine_of_this_gpu(tmp_path: Path) -> None:
    """To load() and to a Processor, beside a plan for another GPU; where that is the only one, it is built anew."""
    torch.manual_seed(0)
    model = Tiny().cuda().eval()
    exported = t2e.export(model, tiny_inputs(), TINY_AXES)
    turing = t2e.build(exported, config=t2e.BuildConfig(compute_capabilities=((7, 5),)))
    both = t2e.bundle(tmp_path / "both.t2e", [turing, t2e.build(exported)])
    module = t2e.load(both, runtime="tensorrt")
    t2e.testing.assert_parity(model, module, tiny_inputs(5))
    inputs = tiny_inputs(3)
    expected = module(*inputs)["logits"].cpu()
    names = [spec.name for spec in exported.signature.call_inputs]
    with t2e.Processor(both) as processor:
        arrays = {name: tensor.cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
        answers = processor.infer(arrays)
    assert torch.equal(torch.from_numpy(answers["logits"]), expected)
    alone = t2e.bundle(tmp_path / "turing.t2e", [turing])
    with pytest.raises(t2e.ArtifactError, match=r"got plans of tensorrt_rtx .* for compute capability 7\.5; expected"):
        t2e.load(alone)
    with pytest.warns(UserWarning, match="anew for this machine: got plans of tensorrt_rtx"):
        rebuilt = t2e.load(alone, on_mismatch="rebuild", cache=tmp_path / "cache")
    t2e.testing.assert_parity(model, rebuilt, tiny_inputs(5))


def test_engine_that_parity_refuses_is_not_kept(tmp_path: Path) -> None:
    """Neither the one that was built, nor one that was found."""
    torch.manual_seed(0)
    model, cache = Tiny().cuda().eval(), t2e.EngineCache(tmp_path)
    stage = importlib.import_module("torch2engine.deploy_steps.accept")
    real = stage.judge
    wrong = t2e.Tolerance(rel_l2=1e-12, max_rel=1e-12, abs=0.0)

    def strict(module: Any, examples: Any, tolerance: Any = None, *rest: Any) -> Any:
        return real(module, examples, wrong if isinstance(module, t2e.TRTModule) else tolerance, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "judge", strict)
        with pytest.raises(t2e.ParityError):
            t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=cache)
    assert cache.entries() == ()
    t2e.deploy(model, tiny_inputs(), TINY_AXES, cache=cache)
    assert len(cache.entries()) == 1
