"""`benchmarks/deploy.py` without a GPU: its processes, and the figures that follow from seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import deploy, deploy_worker
from benchmarks.deploy import figures_of, jobs_of
from benchmarks.zoo import ENTRIES


def test_each_model_has_a_process_for_each_way(tmp_path: Path) -> None:
    """Nobody is faster for what another one has compiled, and only Torch-TensorRT sees its folder."""
    options = argparse.Namespace(models=["resnet50", "vit_b_16"], torch_tensorrt=tmp_path)
    jobs = jobs_of(options, ["0", "1"])
    one_profile = ["deploy", "build", "torch_tensorrt"]
    assert [job.name for job in jobs if job.place == "0"] == [f"resnet50 {kind}" for kind in one_profile]
    assert {job.name for job in jobs if job.place == "1"} == {
        f"vit_b_16 {kind}" for kind in [*one_profile, "four_profiles"]
    }
    seeing = [job.name for job in jobs if str(tmp_path) in job.environment.get("PYTHONPATH", "")]
    assert seeing == ["resnet50 torch_tensorrt", "vit_b_16 torch_tensorrt"]


def test_figures_follow_from_seconds() -> None:
    """The longest phase counts once for each model, and a way that was not timed has no ratio."""
    seconds = {
        "bert.fp16.seconds": 20.0,
        "bert.fp16.phase.export_s": 8.0,
        "bert.fp16.phase.check_s": 5.0,
        "bert.fp16.four_profiles_phase.check_s": 19.0,
        "bert.fp16.alone.seconds": 16.0,
        "unet.fp16.torch_tensorrt_s": 10.0,
    }
    assert figures_of(seconds) == {
        "bert.fp16.longest_phase_share": 0.4,
        "bert.fp16.ratio_to_alone": pytest.approx(1.25),
    }


def test_export_and_build_alone_are_timed_without_a_gpu() -> None:
    """The two calls are those that a user of trtexec makes, and their seconds add up."""
    entry = ENTRIES["tiny"]
    with torch.no_grad():
        found = deploy_worker.build(entry, entry.make())
    assert found["alone.seconds"] == pytest.approx(found["alone.export_s"] + found["alone.build_s"])
    assert min(found.values()) > 0


def test_eight_models_are_deployed() -> None:
    """Those that the figures are promised for are among them."""
    assert len(deploy.MODELS) == 8
    assert {"resnet50", "vit_b_16", "bert"} <= set(deploy.MODELS) <= set(ENTRIES)
