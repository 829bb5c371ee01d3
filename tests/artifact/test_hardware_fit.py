"""Which plan runs on a GPU, and which is chosen of several."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torch2engine.artifact.hardware_fit import Mismatch, choose_plan, describe_target, find_mismatch
from torch2engine.artifact.manifest_fields import Hardware

RTX = Hardware(flavour="tensorrt_rtx", flavour_version="1.6.1.120")
RTX_H200 = replace(RTX, gpu="NVIDIA H200", compute_capability=(9, 0))
RTX_AMPERE = replace(RTX_H200, compute_capabilities=((8, 0), (8, 6)))
RTX_8_6 = replace(RTX, compute_capabilities=((8, 6),))
TRT_H200 = replace(RTX_H200, flavour="tensorrt", flavour_version="10.16.1.11")
TRT_A10 = replace(TRT_H200, gpu="NVIDIA A10", compute_capability=(8, 6))
TRT_3090 = replace(TRT_A10, gpu="NVIDIA GeForce RTX 3090")

TRT_AMPERE_PLUS = replace(TRT_H200, hardware_compatibility="ampere_plus")

PLANS = {
    "any": RTX,
    "rtx h200": RTX_H200,
    "rtx ampere": RTX_AMPERE,
    "rtx only 8.6": RTX_8_6,
    "rtx old": replace(RTX_8_6, flavour_version="1.5.0.1"),
    "trt h200": TRT_H200,
    "trt a10": TRT_A10,
    "trt 3090": TRT_3090,
}


def rtx_on(gpu: str, *capability: int) -> Hardware:
    """TensorRT-RTX of these plans, on a GPU."""
    return replace(RTX, gpu=gpu, compute_capability=(capability[0], capability[1]), driver="580.1")


def trt_on(gpu: str, *capability: int) -> Hardware:
    """TensorRT of these plans, on a GPU."""
    return replace(rtx_on(gpu, *capability), flavour="tensorrt", flavour_version="10.16.1.11")


@pytest.mark.parametrize(
    ("current", "chosen"),
    [
        ([rtx_on("NVIDIA H200", 9, 0)], "rtx h200"),
        ([rtx_on("NVIDIA H100", 9, 0)], "rtx h200"),
        ([rtx_on("NVIDIA A10", 8, 6)], "rtx only 8.6"),
        ([rtx_on("NVIDIA A100", 8, 0)], "rtx ampere"),
        ([rtx_on("NVIDIA L4", 8, 9)], "any"),
        ([trt_on("NVIDIA A10", 8, 6)], "trt a10"),
        ([trt_on("NVIDIA GeForce RTX 3090", 8, 6)], "trt 3090"),
        ([trt_on("NVIDIA A40", 8, 6)], "trt 3090"),
        ([trt_on("NVIDIA L4", 8, 9)], None),
        ([trt_on("NVIDIA H200", 9, 0), rtx_on("NVIDIA H200", 9, 0)], "trt h200"),
        ([rtx_on("NVIDIA H200", 9, 0), trt_on("NVIDIA H200", 9, 0)], "rtx h200"),
        ([trt_on("NVIDIA A100", 8, 0), rtx_on("NVIDIA A100", 8, 0)], "rtx ampere"),
        ([replace(rtx_on("NVIDIA A10", 8, 6), flavour_version="1.5.0.9")], "rtx old"),
        ([replace(rtx_on("NVIDIA A10", 8, 6), flavour_version="1.7.1.1")], None),
        ([replace(TRT_H200, gpu=None, compute_capability=None)], "trt 3090"),
        ([], None),
    ],
)
def test_plan_is_chosen_by_gpu_then_capability_then_flavour(current: list[Hardware], chosen: str | None) -> None:
    """In any order of the plans: one of this GPU, one for its capability, one that TensorRT-RTX may run."""
    assert choose_plan(PLANS, current) == chosen
    assert choose_plan(dict(reversed(PLANS.items())), current) == chosen


def test_chosen_plan_never_mismatches() -> None:
    """Whatever GPU and flavours there are, the choice is none exactly where no plan runs."""
    capabilities = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)]
    machines = [make("NVIDIA A10", *capability) for make in (rtx_on, trt_on) for capability in capabilities]
    for here in machines:
        name = choose_plan(PLANS, [here])
        fitting = [plan for plan, built in PLANS.items() if find_mismatch(built, here) is None]
        assert name in fitting if fitting else name is None


def test_plan_for_ampere_and_later_runs_on_all_of_them_and_comes_last() -> None:
    """It is taken where TensorRT has no plan for the GPU itself, and refused before Ampere."""
    plans = {**PLANS, "portable": TRT_AMPERE_PLUS}
    assert choose_plan(plans, [trt_on("NVIDIA L4", 8, 9)]) == "portable"
    assert choose_plan(plans, [trt_on("NVIDIA H100", 9, 0)]) == "trt h200"
    assert choose_plan(plans, [trt_on("NVIDIA A100", 8, 0)]) == "portable"
    assert find_mismatch(TRT_AMPERE_PLUS, replace(TRT_H200, gpu=None, compute_capability=None)) is None
    assert find_mismatch(TRT_AMPERE_PLUS, trt_on("NVIDIA T4", 7, 5)) == Mismatch(
        "a plan for compute capability 8.0 and later", "one for 7.5, that of this GPU (NVIDIA T4)"
    )


@pytest.mark.parametrize(
    ("built", "text"),
    [
        (RTX_AMPERE, "compute capability 8.0 or 8.6"),
        (TRT_H200, "NVIDIA H200"),
        (RTX, "GPUs that it does not name"),
        (TRT_AMPERE_PLUS, "compute capability 8.0 and later"),
    ],
)
def test_target_is_described(built: Hardware, text: str) -> None:
    """By its compute capabilities, else by the GPU of the build."""
    assert describe_target(built) == text
