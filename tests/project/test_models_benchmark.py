"""`benchmarks/models.py` without a GPU: its processes, and what becomes of their reports."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from benchmarks import models, zoo
from benchmarks.evidence import Evidence
from benchmarks.models import Results, jobs_of
from benchmarks.peers import PEERS
from benchmarks.phased_jobs import Job

OPTIONS = argparse.Namespace(
    models=["resnet50", "bert"],
    batches=[1, 8],
    peers=list(PEERS),
    default_mode=list(zoo.ENTRIES),
    torch_tensorrt=None,
    workers=4,
    rounds=7,
    starts=3,
)


def test_each_model_has_a_process_for_each_kind_on_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours begins first, and only the processes of Torch-TensorRT see its folder."""
    monkeypatch.setenv("PYTHONPATH", "here")
    options = argparse.Namespace(**{**vars(OPTIONS), "torch_tensorrt": tmp_path})
    jobs = jobs_of(options, ["3", "5"])
    kinds = ("engine", "compile", "torch_tensorrt")
    assert [job.name for job in jobs] == [
        *(f"{model} {kind}" for kind in kinds for model in options.models),
        "resnet50 sizes",
    ]
    assert {job.name.split()[0]: job.place for job in jobs} == {"resnet50": "3", "bert": "5"}
    assert all(job.environment["CUDA_VISIBLE_DEVICES"] == job.place for job in jobs)
    paths = {job.name: job.environment["PYTHONPATH"] for job in jobs if "PYTHONPATH" in job.environment}
    assert paths == {f"{model} torch_tensorrt": f"{tmp_path}{os.pathsep}here" for model in options.models}
    assert "--peers=compile,compile_reduce_overhead" in jobs[2].command


def test_slow_compilers_have_a_process_for_each_batch_and_begin_first() -> None:
    """Their minutes pass side by side; one that fails is missing at its batch alone."""
    options = argparse.Namespace(**{**vars(OPTIONS), "models": ["tiny", "swin_t"]})
    jobs = jobs_of(options, ["0", "1"])
    assert [job.name for job in jobs[:3]] == ["swin_t compile 1", "swin_t compile 8", "tiny engine"]
    assert [job.place for job in jobs[:3]] == ["1", "1", "0"]
    assert "--batches=8" in jobs[1].command
    results = Results(Evidence())
    results.fail("swin_t compile 8", "not ready", options.batches)
    assert sorted(results.evidence.samples["left_out"]) == ["swin_t.b8.compile", "swin_t.b8.compile_reduce_overhead"]


def test_default_mode_is_compiled_for_the_named_models_alone() -> None:
    """The mode that is fair beside a CUDA graph is timed for all."""
    options = argparse.Namespace(**{**vars(OPTIONS), "default_mode": ["bert"]})
    commands = {job.name: job.command for job in jobs_of(options, ["0"])}
    assert "--peers=compile_reduce_overhead" in commands["resnet50 compile"]
    assert "--peers=compile,compile_reduce_overhead" in commands["bert compile"]


def test_kind_without_a_peer_has_no_process() -> None:
    """Who leaves a compiler out does not wait for it."""
    options = argparse.Namespace(**{**vars(OPTIONS), "peers": ["eager"], "models": ["bert"]})
    assert [job.name for job in jobs_of(options, ["0"])] == ["bert engine"]


def test_reports_are_gathered_with_their_ratios(tmp_path: Path) -> None:
    """Reports of several processes of a model become one file, which is there before the run ends."""
    draft = tmp_path / "models.failed.json"
    results = Results(Evidence(draft=draft))
    times = {"bert.b1.t2e_default.device_us": 5.0, "bert.b1.eager.device_us": 20.0}
    results.take(Job("bert engine", []), {"figures": times, "samples": {"calls_per_round": {"bert.b1": {"eager": 9}}}})
    results.take(Job("bert compile", []), {"samples": {"calls_per_round": {"bert.b1": {"compile": 7}}}})
    results.take(
        Job("bert compile", []), {"left_out": {"bert.b8.compile": "can't run: no"}, "wrong": {"bert.b8": "2 of 9"}}
    )
    assert draft.exists()
    assert results.evidence.figures == {
        **times,
        "bert.b1.ratio_to_eager": 0.25,
        "geomean.ratio_to_eager": 0.25,
        "largest.ratio_to_eager": 0.25,
        "cases.ratio_to_eager": 1,
    }
    assert results.evidence.samples["calls_per_round"] == {"bert.b1": {"eager": 9, "compile": 7}}
    assert results.evidence.samples["left_out"] == {"bert.b8.compile": "can't run: no"}
    assert results.evidence.samples["wrong"] == {"bert.b8": "2 of 9"}


def test_failed_process_says_what_is_missing_for_it() -> None:
    """Each figure that it would have given has the reason; those that are there, or have one, keep theirs."""
    results = Results(Evidence())
    results.evidence.figure("bert.b1.compile.host_us", 3)
    results.left_out["bert.b8.compile"] = "wrong: ParityError"
    results.fail("bert compile", "ended with -11\nTraceback\nRuntimeError: illegal access", [1, 8])
    reason = "can't run: ended with -11: RuntimeError: illegal access"
    assert results.evidence.samples["left_out"] == {
        "bert.b1.compile_reduce_overhead": reason,
        "bert.b8.compile": "wrong: ParityError",
        "bert.b8.compile_reduce_overhead": reason,
    }
    assert "illegal access" in results.evidence.samples["errors"]["bert compile"]


def test_twelve_models_of_every_kind_are_timed() -> None:
    """Convolutions, attention of images and texts, a decoder, a diffusion model and a recurrent one."""
    assert len(zoo.ENTRIES) == 12
    assert {"tiny", "resnet50", "swin_t", "dinov2_s", "bert", "llama_6", "unet", "lstm"} <= set(zoo.ENTRIES)
    assert models.SIZED in zoo.ENTRIES
