"""`torch2engine.deploy_steps.speed_note` and the times behind it, without a GPU: sizes, words, and silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support import sample_artifacts
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.finding import Finding
from torch2engine.core.spec import Axis, Profile, Signature, TensorSpec
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deploy_steps.speed_note import note_if_pytorch_is_faster, note_on_speed
from torch2engine.deployed.speed_at_opt import CallTime, SpeedAtOpt, cases_at_opt
from torch2engine.deployed.trt.trt_module import TRTModule


def speed(case: str, engine: tuple[float, float], eager: tuple[float, float]) -> SpeedAtOpt:
    """Times as (call, kernels), in µs."""
    times = [CallTime(call_us=call, kernels_us=kernels) for call, kernels in (engine, eager)]
    return SpeedAtOpt(case=case, engine=times[0], eager=times[1])


def finding(name: str) -> Finding:
    """A finding of which only the name counts."""
    return Finding(name=name, measured="", why="", suggestion="")


def test_engine_that_is_faster_has_no_note() -> None:
    """Nor has one that is as fast, as far as a short measurement tells."""
    faster = speed("batch 1", (100, 90), (900, 300))
    as_fast = speed("batch 8", (104, 104), (100, 100))
    tiny = speed("batch 32", (9.0, 9.0), (64, 7.2))
    assert note_on_speed([faster, as_fast, tiny], [finding("reformats")], "") == []
    assert note_on_speed([], [], "") == []


def test_note_has_the_figures_and_the_reasons_that_are_known() -> None:
    """Eager that is faster comes first, then kernels that only a CUDA graph would make faster."""
    found = [
        speed("batch 1", (940, 940), (3034, 688)),
        speed("batch 8", (150, 120), (600, 300)),
        speed("batch 32", (4344, 4340), (3410, 3275)),
    ]
    findings = [finding(name) for name in ("unfused attention", "small batch", "wide profile")]
    assert note_on_speed(found, findings, "NVIDIA H200") == [
        "PyTorch eager is faster at batch 32: a call takes 3410 µs, and 4344 µs in the engine. PyTorch's kernels are "
        "faster at batch 1: 688 µs, and 940 µs in the engine. In eager their launches take longer (3034 µs a call), "
        "but not in a CUDA graph. Reasons: wide profile; unfused attention; TensorRT-RTX has no kernels made for "
        "NVIDIA H200."
    ]


def test_note_says_that_calls_are_host_bound() -> None:
    """A model without axes has no sizes to name."""
    (note,) = note_on_speed([speed("", (90, 20), (60, 15))], [], "")
    assert note == (
        "PyTorch eager is faster: a call takes 60 µs, and 90 µs in the engine. Reasons: host-bound calls (see "
        "RuntimeConfig.cuda_graphs and output)."
    )


def test_note_says_so_where_nothing_explains_it() -> None:
    """The figures stand all the same."""
    (note,) = note_on_speed([speed("", (90, 90), (60, 60))], [], "")
    assert note.endswith(
        "No finding explains it: TensorRT's kernels are slower here. The model itself may be the better choice."
    )


def test_times_are_taken_at_each_opt_once() -> None:
    """Whatever the case is called; sizes that are nobody's opt are left out."""
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("batch", 2)),),
        outputs=(TensorSpec("y", "float32", ("batch", 2)),),
        axes=(Axis("batch", 1, 8, 32),),
    )
    profiles = [Profile({"batch": (1, 8, 32)}), Profile({"batch": (1, 1, 1)}), Profile({"batch": (4, 4, 4)})]
    cases = {
        name: ParityCase(name, (torch.zeros(size, 2),), {})
        for name, size in (("min", 1), ("opt", 8), ("max", 32), ("random", 8), ("1 min", 1), ("example 0", 4))
    }
    found = cases_at_opt(signature, profiles, list(cases.values()))
    assert found == {"batch 1": cases["min"], "batch 8": cases["opt"], "batch 4": cases["example 0"]}


def test_model_without_axes_is_timed_on_its_sample() -> None:
    """Its profile has no sizes, and there may be none at all."""
    signature = Signature(inputs=(TensorSpec("x", "float32", (3,)),), outputs=(TensorSpec("y", "float32", (3,)),))
    case = ParityCase("sample", (torch.zeros(3),), {})
    for profiles in ([], [Profile({})]):
        assert cases_at_opt(signature, profiles, [case, case]) == {"": case}


@pytest.mark.parametrize("compares", [True, False])
def test_nothing_is_timed_without_a_gpu(compares: bool, tmp_path: Path) -> None:
    """There is neither a phase nor a note, whether it is asked for or not."""
    model = nn.Linear(3, 3)
    given = ModelAndSample.of(model, torch.rand(2, 3), None, None, None, None, ())
    config = t2e.BuildConfig(compare_speed=compares)
    request = DeployRequest.from_arguments(given, "fp32", None, None, "onnxruntime", config, t2e.RuntimeConfig())
    case = ParityCase("opt", (torch.rand(2, 3),), {})
    report = ReportBuilder()
    module = TRTModule(sample_artifacts.fresh_engine(tmp_path / "engine"))
    note_if_pytorch_is_faster(module, request, [case], [case], report)
    assert report.build("fp32").seconds == {}
    assert report.build("fp32").notes == ()


def test_option_is_a_bool() -> None:
    """Like `refittable`."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.BuildConfig(compare_speed="no")  # type: ignore[arg-type]
    assert str(caught.value) == ("BuildConfig.compare_speed: got 'no'; expected True or False; pass such a value")
