"""`benchmarks/deploy.py` without a GPU: its processes, and the figures that follow from seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import deploy, deploy_worker, table
from benchmarks.deploy import figures_of, jobs_of
from benchmarks.deploy_worker import KINDS
from benchmarks.zoo import ENTRIES
from tests.support.benchmark_sheets import deploys, published


def _options(**others: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{"models": ["resnet50", "vit_b_16"], "kinds": list(KINDS), "torch_tensorrt": None, "at_a_time": 1, **others}
    )


def test_each_model_has_a_process_for_each_way(tmp_path: Path) -> None:
    """Nobody is faster for what another one has compiled, and only Torch-TensorRT sees its folder."""
    jobs = jobs_of(_options(torch_tensorrt=tmp_path), ["0", "1"])
    one_profile = ["deploy", "build", "torch_tensorrt"]
    first, second = ([job.name for job in jobs if job.place == f"{device} turn 0"] for device in (0, 1))
    assert sorted(first) == sorted(f"resnet50 {kind}" for kind in one_profile)
    assert sorted(second) == sorted(f"vit_b_16 {kind}" for kind in KINDS)
    assert {job.environment["CUDA_VISIBLE_DEVICES"] for job in jobs if job.name in first} == {"0"}
    assert {job.environment["CUDA_CACHE_DISABLE"] for job in jobs} == {"1"}
    seeing = [job.name for job in jobs if str(tmp_path) in job.environment.get("PYTHONPATH", "")]
    assert seeing == ["resnet50 torch_tensorrt", "vit_b_16 torch_tensorrt"]


def test_what_is_promised_is_timed_first_beside_the_peer() -> None:
    """A run that is cut has the seconds that the project promises, and Torch-TensorRT's."""
    jobs = jobs_of(_options(models=["unet", "resnet50", "vit_b_16", "bert"]), ["0"])
    assert [job.name for job in jobs] == [
        *(f"{model} deploy" for model in deploy.PROMISED),
        "vit_b_16 four_profiles",
        *(f"{model} torch_tensorrt" for model in deploy.PROMISED),
        "unet deploy",
        *(f"{model} build" for model in ("unet", *deploy.PROMISED)),
        "unet torch_tensorrt",
    ]


def test_ways_come_in_the_order_of_the_option_and_share_the_cores() -> None:
    """A run that is cut has deploy's figures, and processes that work at the same time have threads of their own."""
    alone = jobs_of(_options(kinds=["deploy", "build"]), ["0"])
    assert [job.name.split()[1] for job in alone] == ["deploy", "deploy", "build", "build"]
    assert {job.place for job in alone} == {"0 turn 0"}
    together = jobs_of(_options(kinds=["deploy"], at_a_time=2), ["0"])
    assert [job.place for job in together] == ["0 turn 0", "0 turn 1"]
    assert {job.environment["CUDA_VISIBLE_DEVICES"] for job in together} == {"0"}
    threads = [int(jobs[0].environment["OMP_NUM_THREADS"]) for jobs in (alone, together)]
    assert threads[1] == max(1, threads[0] // 2)


def test_figures_follow_from_seconds() -> None:
    """The longest phase counts once for each way, and a way that was not timed has no ratio."""
    seconds = {
        "bert.fp16.seconds": 20.0,
        "bert.fp16.phase.export_s": 8.0,
        "bert.fp16.phase.check_s": 5.0,
        "bert.fp16.four_profiles_phase.check_s": 19.0,
        "bert.fp16.four_profiles_seconds": 38.0,
        "bert.fp16.alone.seconds": 16.0,
        "unet.fp16.torch_tensorrt_s": 10.0,
    }
    assert figures_of(seconds) == {
        "bert.fp16.longest_phase_share": 0.4,
        "bert.fp16.four_profiles_longest_phase_share": 0.5,
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


def test_table_shows_phases_and_the_other_ways(tmp_path: Path) -> None:
    """A row for each model, one more for four profiles; what has no figure is a dash with its reason."""
    text = table.generate(
        published(tmp_path, deploys(**{"bert torch_tensorrt": "ended with 1", "unet deploy": "late"}))
    )
    assert "| ResNet-50 | 10.0 | 1.0 | 3.0 | 1.0 | 1.0 | 2.0 | 2.0 | 5.0 | – |" in text
    assert "| ViT-B/16, four profiles | 11.0 | 1.0 | 3.0 | 1.0 | 1.0 | 2.0 | 2.0 |  |  |" in text
    assert "| U-Net of a diffusion model | – | – |" in text
    assert "U-Net of a diffusion model: late." in text
    assert "**`deploy`** takes 10.0 s for ResNet-50, and at most 12.0 s, for BERT-base" in text
    assert "Export and build alone: we take 2.0 to 2.4 times as long." in text


def test_phase_of_more_than_half_needs_its_reason(tmp_path: Path) -> None:
    """The table says why, or is not made."""
    sheet = deploys()
    sheet["figures"]["bert.fp16.phase.parity_s"] = 9.0
    assert "BERT-base, 128 tokens: parity is 75% of the time. TensorRT-RTX compiles" in table.generate(
        published(tmp_path, sheet)
    )
    sheet["figures"]["resnet50.fp16.phase.check_s"] = 5.1
    with pytest.raises(table.TableError, match=r"resnet50\.fp16\.phase\.check_s is 51% of the time"):
        table.generate(published(tmp_path, sheet))
