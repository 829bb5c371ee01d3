"""`benchmarks/`: the form of evidence, the tables of speed, the judge of the stress run, and scripts without a GPU."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    chart,
    fallback,
    fallback_models,
    fallback_table,
    fallback_worker,
    peers,
    precision,
    stress,
    table,
    zoo,
)
from benchmarks.evidence import FIELDS, Evidence, complaints, rounded
from benchmarks.fallback import SecondTry
from benchmarks.fallback_models import OWN, own_model
from benchmarks.fallback_worker import BOUNDARY, FASTER
from benchmarks.ordinary_models import ORDINARY, SAMPLES
from benchmarks.phased_jobs import Job, Turn
from benchmarks.throughput import busy_share
from benchmarks.zoo_fallback import COMPILE, PARTS
from tests.support import tiny_zoo
from tests.support.benchmark_sheets import overhead, precisions, processor, published, refits, sheet, throughput, whole
from tests.support.paths import REPOSITORY
from tests.support.run_scripts import Ended, run_scripts
from torch2engine.fallback import measured_cost

SCRIPTS = (
    "call_overhead",
    "models",
    "deploy",
    "stress",
    "precision",
    "refit",
    "processor",
    "throughput",
    "trust",
    "fallback",
    "compile_backend",
)

# Evidence


def test_evidence_has_the_form_that_it_demands(tmp_path: Path) -> None:
    """What is written passes the check, with commit, versions and figures in it, also without a GPU."""
    evidence = Evidence()
    evidence.figure("tiny.raw.host_us", 28.46789)
    evidence.figure("stress.calls", 123_456)
    evidence.samples["why"] = {"peer": "can't run"}
    evidence.write(tmp_path / "folder" / "run.json")
    data = json.loads((tmp_path / "folder" / "run.json").read_text())
    assert list(complaints(data)) == []
    assert list(data) == list(FIELDS)
    assert data["name"] == "run"
    assert data["figures"] == {"stress.calls": 123_456, "tiny.raw.host_us": 28.47}
    assert data["versions"]["torch"] == torch.__version__
    assert {"torch2engine", "onnx"} <= set(data["versions"])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks" / "results").glob("*.json")), ids=str)
def test_committed_evidence_has_the_form(path: Path) -> None:
    """Every file among the results is evidence, under its own name, and none of a failed run."""
    data = json.loads(path.read_text(encoding="utf-8"))
    assert list(complaints(data)) == []
    assert data["name"] == path.stem
    assert "failed" not in path.stem


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figure_that_is_no_number_is_refused(value: float) -> None:
    """NaN in a JSON file would be read by nobody."""
    with pytest.raises(ValueError, match="a figure must be finite"):
        Evidence().figure("tiny.raw.host_us", value)


def test_draft_is_marked_as_incomplete(tmp_path: Path) -> None:
    """What a run leaves that is cut says so, and what it records later is not marked."""
    draft = tmp_path / "run.failed.json"
    evidence = Evidence(draft=draft)
    evidence.figure("trust.models", 3)
    evidence.write_draft()
    data = json.loads(draft.read_text())
    assert data["figures"] == {"trust.models": 3}
    assert data["samples"] == {"failed": "incomplete: the run was cut"}
    assert evidence.samples == {}


def test_figures_keep_four_digits() -> None:
    """More are noise; whole numbers are counts and stay."""
    assert rounded(1234.56) == 1235.0
    assert rounded(0.000123456) == 0.0001235
    assert rounded(30_001) == 30_001


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 3}, "schema: 3, not 2"),
        ({"covers": ...}, "covers: missing"),
        ({"schema": 1}, "covers: unknown"),
        ({"commit": "b5aab7b"}, "commit: 'b5aab7b' is no commit"),
        ({"clean": "yes"}, "clean: 'yes' is no bool"),
        ({"figures": {"a": None}}, "figures: a is None"),
        ({"figures": {"a": True}}, "figures: a is True"),
        ({"extra": 1}, "extra: unknown"),
        ({"gpu": ...}, "gpu: missing"),
    ],
)
def test_wrong_form_is_found(change: dict[str, Any], complaint: str) -> None:
    """The check is not blind."""
    data = {**sheet("run", {}), **change}
    data = {name: value for name, value in data.items() if value is not ...}
    assert list(complaints(data)) == [complaint]


# Scripts


ON_CPU = ("--cpu", "--precisions", "fp32", "--processes", "1")
PATIENT = ("--timeout", "1500", "--seconds", "1500")  # a busy machine is no reason to fail
STUDIED = "siren"  # in a process that imports all anew, as every model is: one takes as long as half a dozen scripts


@dataclass(frozen=True)
class ScriptRun:
    """A script that has ended, and the folder of its evidence."""

    ended: Ended
    folder: Path

    @property
    def files(self) -> list[str]:
        """The names of what it left."""
        return [path.name for path in self.folder.iterdir()] if self.folder.exists() else []


@pytest.fixture(scope="module")
def script_runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ScriptRun]:
    """Each script without a GPU, and the study of trust twice. They share the process that imports PyTorch."""
    folder = tmp_path_factory.mktemp("scripts")
    words = {
        **{script: [script] for script in SCRIPTS},
        "trust on the CPU": ["trust", *ON_CPU, *PATIENT, "--models", STUDIED],
        "trust without time": ["trust", *ON_CPU, "--models", "mlp", "--seconds", "0"],
    }
    commands = [
        ["-m", f"benchmarks.{script}", "--out", str(folder / run), *rest] for run, (script, *rest) in words.items()
    ]
    runs = zip(words, run_scripts(commands), strict=True)
    return {run: ScriptRun(ended, folder / run) for run, ended in runs}


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_says_that_it_needs_a_gpu(script: str, script_runs: Mapping[str, ScriptRun]) -> None:
    """On a machine without a GPU it fails at once, in words, and leaves nothing that could pass for evidence."""
    run = script_runs[script]
    assert run.ended.code == 1
    assert re.match(r"InstallationError: (NVIDIA driver|PyTorch): .+; \w+", run.ended.err)
    assert "Traceback" not in run.ended.err
    assert run.files == []


def test_make_bench_runs_every_script_and_stops_at_a_failure(repository: Path, tmp_path: Path) -> None:
    """Each script has a process of its own; one that fails makes make fail."""
    log, fake = tmp_path / "log", tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$*" >> {log}\ntest "$2" != "$FAILS"\n')
    fake.chmod(0o755)

    def make(fails: str) -> tuple[int, list[str]]:
        log.write_text("")
        command = ["make", "bench", f"GPU_PYTHON={fake}", f"RESULTS={tmp_path}/out"]
        done = subprocess.run(
            command, cwd=repository, env={**os.environ, "FAILS": fails}, capture_output=True, check=False
        )
        return done.returncode, log.read_text().splitlines()

    wanted = [f"-m benchmarks.{script} --out {tmp_path}/out" for script in SCRIPTS]
    assert make("") == (0, wanted)
    code, ran = make("benchmarks.models")
    assert code != 0
    assert ran == wanted[:2]


# Stress


def planted(device: str = "cpu") -> tuple[list[stress.Example], stress.Checker]:
    """Inputs with answers, and a judge."""
    torch.manual_seed(0)
    return stress.examples(stress.Network().eval(), 4, device), stress.Checker(device)


def test_stress_lets_right_answers_pass() -> None:
    """Rounding is no wrong result."""
    known, checker = planted()
    for example in known:
        checker.keep(example.y * (1 + 1e-3), example.y)
    checker.finish()
    assert int(checker.wrong) == 0
    assert checker.checks == 2 * len(known)


@pytest.mark.parametrize("which", ["another input's answer", "one row of another", "NaN", "zeros", "one element"])
def test_stress_counts_a_wrong_answer(which: str) -> None:
    """Everything that a race or a reused buffer can do to a result is counted once for each look."""
    known, checker = planted()
    first, second = known[-1].y, known[-2].y
    found = first.clone()
    if which == "another input's answer":
        found = second
    elif which == "one row of another":
        found[2] = second[2]
    elif which == "NaN":
        found[3, 5] = float("nan")
    elif which == "zeros":
        found.zero_()
    else:
        found[0, 0] += 0.5
    checker.keep(found, first)
    checker.finish()
    assert int(checker.wrong) == 2


def test_stress_counts_a_result_that_changes_later() -> None:
    """An old result that a later call overwrites is found when it is looked at again."""
    known, checker = planted()
    result = known[0].y.clone()
    checker.keep(result, known[0].y)
    assert int(checker.wrong) == 0
    result.copy_(known[1].y)
    checker.finish()
    assert int(checker.wrong) == 1


def test_stress_keeps_a_bounded_number_of_results() -> None:
    """Older results are looked at again and dropped, so that memory stays flat."""
    known, checker = planted()
    for _ in range(10):
        for example in known:
            checker.keep(example.y, example.y)
    assert checker.checks == 10 * len(known) + (10 * len(known) - stress.KEPT)


# The tables of speed, and the chart


def test_chart_shows_what_the_evidence_says(repository: Path) -> None:
    """The picture is the one that the committed JSON gives, and every time in it is a figure."""
    evidence = table.read_evidence(repository / "benchmarks" / "results" / "models.json")
    assert evidence is not None
    drawn = chart.draw(evidence["figures"], table.origin_of(evidence))
    assert (repository / "docs" / "speed.svg").read_text(encoding="utf-8") == drawn
    shown = [float(time) for time in re.findall(r">([\d.]+) ms<", drawn)]
    eager = [evidence["figures"][f"{model}.b{batch}.eager.device_us"] / 1000 for model, batch in chart.GROUPS]
    assert {round(time, 2) for time in eager} <= set(shown)
    changed = {name: 2 * value for name, value in evidence["figures"].items()}
    assert chart.draw(changed, "another GPU") != drawn


def test_page_says_what_the_evidence_says(repository: Path) -> None:
    """The tables are those that the committed JSON gives; without JSON there is none."""
    page = (repository / "docs" / "speed.md").read_text(encoding="utf-8")
    assert table.between(page) == table.generate(repository / "benchmarks" / "results")


def test_table_knows_every_model_and_peer() -> None:
    """Whatever models.py may time has its row and its column, and every peer one of ours to be held against."""
    assert set(table.TITLES) == set(zoo.ENTRIES)
    assert set(peers.PEERS) <= set(table.CANDIDATES)
    assert set(table.COUNTERPARTS) == set(peers.PEERS) - {"raw"}


def test_no_evidence_gives_no_table(tmp_path: Path) -> None:
    """Nothing is claimed that was not measured."""
    assert table.generate(tmp_path) == ""


def test_table_has_every_figure_and_where_it_comes_from(tmp_path: Path) -> None:
    """One row a model and batch, in order, GPU and host time in each cell, and the run that they are from."""
    text = table.generate(published(tmp_path, overhead(), whole()))
    rows = [line for line in text.splitlines() if line.startswith("| ResNet-50")]
    ours, theirs = "100 / 40.0", "250 / 100"
    assert rows == [f"| ResNet-50, {batch} | {' | '.join([ours] * 3 + [theirs] * 7)} |" for batch in (1, 8, 32)]
    assert text.count("NVIDIA H200, TensorRT-RTX 1.6.1.120, torch 2.11.0, commit 01234567") == 2
    assert len([line for line in text.splitlines() if "| TensorRT's enqueue alone (" in line]) == 3
    assert "works in 31 MiB at batch 1, where its engine may need 132" in text
    assert "first answer 0.31 s after imports, 3.20 s without" in text


def test_table_shows_ratios_and_fused_attention(tmp_path: Path) -> None:
    """What the evidence says beside the times is on the page; a peer that nobody has looked for has no column."""
    data = whole()
    assert "geometric mean" not in table.generate(published(tmp_path, data))
    ratios = {"geomean.ratio_to_tt_graph": 0.876, "largest.ratio_to_tt_graph": 1.04, "cases.ratio_to_tt_graph": 36}
    data["figures"] |= {**ratios, "swin_t.fused_share": 0.5, "resnet50.dynamic_over_static": 1.083}
    text = table.generate(published(tmp_path, data))
    assert "| Torch-TensorRT in its CUDA graph | 0.88 | 1.04 | 36 |" in text
    assert "by TensorRT's inspector: Swin-T 50 %." in text
    assert "takes at most 1.08 times as long" in text
    data["figures"] = {name: value for name, value in data["figures"].items() if "torch_tensorrt" not in name}
    assert "| Torch-TensorRT |" not in table.generate(published(tmp_path, data))


def test_table_has_a_row_where_ours_is_missing(tmp_path: Path) -> None:
    """An engine that failed or was wrong is shown with its reason beside the peers, which then beat nobody."""
    data = whole(eager=1.0)
    why = "wrong: ParityError: relative L2 is 0.0754"
    for batch in (1, 8, 32):
        for name in ("t2e_default", "t2e_static_graph"):
            data["samples"].setdefault("left_out", {})[f"resnet50.b{batch}.{name}"] = why
            for what in ("host_us", "device_us"):
                del data["figures"][f"resnet50.b{batch}.{name}.{what}"]
    parts = table._Models(data, {}).lines()  # pyright: ignore[reportPrivateUsage]
    text = "\n".join(parts)
    assert text.count("| ResNet-50, ") == 3
    assert f"\n(1) torch2engine: {why}\n" in text
    assert "| – (1) | – (2) | 100 / 40.0 | 1.0 / 0.4 |" in text


def test_table_shows_what_explain_finds_where_a_peer_is_faster(tmp_path: Path) -> None:
    """A loss stands beside what was found in the engine; an engine that nobody beats needs no words."""
    found = ["reformats: 9 of 20 layers only move data. Each reads. Try: less", "small batch: 1 entry. Why. Try: more"]
    data = whole(eager=50.0)
    data["samples"]["findings"] = {"resnet50": found, "bert": ["wide profile: of 64. Why. Try: two"]}
    text = table.generate(published(tmp_path, data), {"*": "it is"})
    assert "`explain` finds in the engine of ResNet-50: reformats: 9 of 20 layers only move data; small batch: " in text
    assert "wide profile" not in text
    assert "`explain` finds" not in table.generate(published(tmp_path, {**whole(), "samples": data["samples"]}))


def test_table_says_whether_batches_had_profiles_of_their_own(tmp_path: Path) -> None:
    """Times of kernels for one size are not passed off as those for all."""
    data = whole()
    words = "half precision, with a profile of its own for each batch, `models.json`"
    assert words not in table.generate(published(tmp_path, data))
    data["samples"]["own_profiles"] = True
    assert words in table.generate(published(tmp_path, data))


def test_ratios_are_of_the_figures_beside_them(tmp_path: Path) -> None:
    """A ratio is the two times that stand in its row."""
    text = table.generate(published(tmp_path, overhead()))
    found = re.findall(r"^\| .+ \| ([\d.]+) \| ([\d.]+) \| .+ \(([\d.]+)\) \|$", text, re.M)
    assert len(found) == len(table.CALLS)
    assert all(abs(float(here) / float(there) - float(ratio)) < 0.006 for here, ratio, there in found)


@pytest.mark.parametrize(
    ("peer", "us"), [("eager", 99.0), ("polygraphy", 50.0), ("eager_graph", 99.9), ("compile_reduce_overhead", 1.0)]
)
def test_faster_peer_needs_a_reason(peer: str, us: float, tmp_path: Path) -> None:
    """Without one there is no table; with one it stands below, marked in the cell."""
    folder = published(tmp_path, whole(**{peer: us}))
    with pytest.raises(table.TableError, match=rf"resnet50\.b\d+\.{peer}\.device_us is .+, ours 100.0: say why"):
        table.generate(folder, {})
    with pytest.raises(table.TableError):
        table.generate(folder, {f"resnet50.b*.{peer}.host_us": "the host is not the GPU"})
    text = table.generate(folder, {f"resnet50.b*.{peer}.*": "its kernels are made for this shape"})
    assert text.count("(1)") == 3 + 1
    assert "\n(1) its kernels are made for this shape\n" in text


def test_ours_and_the_floor_need_no_reason(tmp_path: Path) -> None:
    """TensorRT's own enqueue is what we stand on, and our other way to call is no peer."""
    assert "(1)" not in table.generate(published(tmp_path, whole(raw=1.0, t2e_static_graph=2.0)), {})


def test_missing_peer_needs_its_reason(tmp_path: Path) -> None:
    """A peer that was left out is told with the reason that the run gave, never silently."""
    data = whole()
    for batch in (1, 8, 32):
        del data["figures"][f"resnet50.b{batch}.polygraphy.host_us"]
    with pytest.raises(table.TableError, match=r"resnet50\.b1\.polygraphy is missing, and nothing says why"):
        table.generate(published(tmp_path, data))
    why = {f"resnet50.b{batch}.polygraphy": "can't run: OSError: no libcudart" for batch in (1, 8)}
    data["samples"]["left_out"] = {**why, "resnet50.b32.polygraphy": "not timed: takes long"}
    text = table.generate(published(tmp_path, data))
    assert text.count("– (1)") == 2
    assert "\n(1) Polygraphy: can't run: OSError: no libcudart\n" in text
    assert text.count("| – |") == 1


def test_table_of_precisions(tmp_path: Path) -> None:
    """A row for each model and precision; what deploy would refuse says so, what was left out says why."""
    data = precisions(**{"lstm.fp8": "ParityError: relative L2 is 1\nmore"})
    text = table.generate(published(tmp_path, data))
    rows = [line for line in text.splitlines() if line.startswith("| ResNet-50")]
    assert rows == [
        "| ResNet-50, fp32 | 1.0e-05 |  | 100 | 800 | 1.00 |",
        "| ResNet-50, tf32 | 1.0e-04 |  | 50.0 | 400 | 2.00 |",
        "| ResNet-50, fp16 | 1.0e-03 | 97.5 % | 25.0 | 200 | 4.00 |",
        "| ResNet-50, bf16 | 1.0e-02 | 97.5 % | 12.5 | 100 | 8.00 |",
        "| ResNet-50, fp8 | 1.0e-01 (refused by default) | 97.5 % | 6.2 | 50.0 | 16.00 |",
    ]
    assert "| LSTM, 2 layers, 64 steps, fp8 | – | – | – | – | – |" in text
    assert "\nLSTM, 2 layers, 64 steps in fp8: ParityError: relative L2 is 1." in text
    del data["figures"]["bert.fp16.rel_l2"]
    with pytest.raises(table.TableError, match=r"bert\.fp16 is missing, and nothing says why"):
        table.generate(published(tmp_path, data))


def test_table_knows_every_precision_and_model() -> None:
    """Whatever precision.py may time has its rows."""
    assert set(table.FLOAT_TITLES) == set(zoo.FLOATS)
    assert table.PRECISIONS == precision.PRECISIONS


def test_table_of_refits(tmp_path: Path) -> None:
    """A row for each model, and what it costs to do without; a model that is missing is told."""
    text = table.generate(published(tmp_path, refits()))
    assert "| ResNet-50 | 12.3 | 30.0 | 2.0e-03 | 1.0e-05 |" in text
    assert "| EfficientNet-B0 | 17.3 | 35.0 |" in text
    assert "a refit after each of 50 optimizer steps" in text
    assert "ResNet-50 takes 24.7 s to deploy again, 2000 times as long, or 15.0 s" in text
    assert "deploy takes 0.84 s beside the export, and 1.26 s in all" in text
    assert set(table.REFIT_TITLES) == set(zoo.REFITTED)
    data = refits()
    del data["figures"]["bert.rel_l2"]
    with pytest.raises(table.TableError, match=r"refit\.json: 'bert\.rel_l2' is missing"):
        table.generate(published(tmp_path, data))


def test_table_of_the_processor(tmp_path: Path) -> None:
    """A row for each way to call, with what it is held against; a figure that is missing is told."""
    text = table.generate(published(tmp_path, processor()))
    assert "| `infer`, batch 1 | 2.00 | 4.00 | 3.00 | 1.90 | 2.50 |" in text
    assert "| `infer_stream`, batch 32 | 2.30 | 9.20 | 8.00 | 1.90 |  |" in text
    assert "| the same, pageable uint8 images | 2.50 |  |  | 1.90 |  |" in text
    assert (
        "first answer 0.99 s after its start. 10000 calls of 4 threads, with a TRTModule's between them: 0 wrong"
        in text
    )
    data = processor()
    del data["figures"]["infer.b8.ms"]
    with pytest.raises(table.TableError, match=r"processor\.json: 'infer\.b8\.ms' is missing"):
        table.generate(published(tmp_path, data))


def test_table_of_throughput(tmp_path: Path) -> None:
    """A row for each batch, a column for each number of streams; where eager is faster, the reason stands below."""
    text = table.generate(published(tmp_path, throughput()))
    assert "| half precision, items a second | 1 stream | 2 streams | eager in CUDA graphs, at best |" in text
    assert "| ResNet-50, batch 1 | 1000 | 1500 | 750 |" in text
    assert "| ViT-B/16, batch 8 | 4000 | 6000 | 8000 (1) |" in text
    assert "\n(1) Its kernels are faster here" in text
    assert (
        "answers 1234 items a second with ResNet-50 at batch 8. An engine is computing for 98.8 % of the time." in text
    )
    assert "answer 1.50 times as many items a second as one stream; most for ResNet-50 at batch 1. Eager" in text
    assert (
        "Eager in CUDA graphs answers more in 2 of 4 cases. With `infer_stream` the GPU computes for at least" in text
    )
    data = throughput()
    del data["figures"]["vit_b_16.processor.b8.gpu_busy_share"]
    with pytest.raises(
        table.TableError, match=r"throughput\.json: 'vit_b_16\.processor\.b8\.gpu_busy_share' is missing"
    ):
        table.generate(published(tmp_path, data))


def test_gpu_is_busy_while_any_inference_is_under_way() -> None:
    """Two at once count once, gaps count as idle, and the order in which they ended means nothing."""
    assert busy_share([(0.0, 1.0), (1.0, 3.0)]) == 1
    assert busy_share([(2.0, 4.0), (0.0, 3.0), (1.0, 2.0)]) == 1
    assert busy_share([(6.0, 8.0), (0.0, 1.0), (0.5, 2.0)]) == 0.5
    assert busy_share([(0.0, 10.0), (1.0, 2.0), (15.0, 20.0)]) == 0.75


@pytest.mark.parametrize(
    ("change", "text"),
    [({"clean": False}, "models.json: it was not measured on a clean tree"), ({"schema": 3}, "models.json: schema: 3")],
)
def test_evidence_that_is_none_gives_no_table(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    """Only a whole file from a clean tree is published."""
    with pytest.raises(table.TableError) as caught:
        table.generate(published(tmp_path, {**whole(), **change}))
    assert str(caught.value).startswith(text)


def test_command_rewrites_the_page_and_checks_it(repository: Path, tmp_path: Path) -> None:
    """`--check` fails until the table has been made, and making it twice changes nothing more."""
    page = tmp_path / "speed.md"
    page.write_text(f"# title\n\n{table.START}\nold\n{table.END}\n\nafter\n")
    published(tmp_path, overhead())

    def command(*flags: str) -> tuple[int, str]:
        options = ["--results", str(tmp_path), "--page", str(page), *flags]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.table", *options],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    assert command("--check") == (
        1,
        "speed.md does not say what the evidence says: run `python -m benchmarks.table`\n",
    )
    assert "old" in page.read_text()
    assert command() == (0, "")
    once = page.read_text()
    assert table.between(once) == table.generate(tmp_path)
    assert once.startswith("# title\n\n")
    assert once.endswith("\n\nafter\n")
    assert command("--check") == (0, "")
    assert table.rewritten(once, table.generate(tmp_path)) == once


@pytest.mark.parametrize(
    "readme", ["nothing", table.START, f"{table.END}{table.START}", f"{table.START}{table.END}" * 2]
)
def test_readme_without_its_marks_is_refused(readme: str) -> None:
    """A lost mark is an error, not a lost table."""
    with pytest.raises(table.TableError, match="once each and in this order"):
        table.rewritten(readme, "text")


def test_rewriting_to_nothing_and_back_is_stable() -> None:
    """Without evidence the marks stand alone, on lines of their own."""
    readme = f"a\n{table.START}\n{table.END}\nb\n"
    assert table.rewritten(readme, "") == readme
    assert table.rewritten(table.rewritten(readme, "text"), "") == readme


# Trust


def test_trust_is_studied_without_a_gpu(script_runs: Mapping[str, ScriptRun]) -> None:
    """A model and all planted faults, each figure under its name, and no draft left beside the evidence."""
    run = script_runs["trust on the CPU"]
    assert run.ended.code == 0, run.ended.err[-2000:]
    assert run.files == ["trust.json"]
    data = json.loads((run.folder / "trust.json").read_text())
    assert list(complaints(data)) == []
    figures = data["figures"]
    assert (figures["trust.models"], figures["trust.false_refusals"]) == (1, 0)
    assert figures["trust.faults_judged"] >= 3 * 60
    assert figures["trust.false_passes"] == 0
    assert list(data["samples"]["models"]) == [STUDIED]
    assert data["samples"]["models"][STUDIED]["fp32"]["verdict"] == "passed"


def fallback_results(monkeypatch: pytest.MonkeyPatch, most_ratio: float, ways: Mapping[str, str]) -> Evidence:
    """What the studies of these subjects find on the CPU; each waits for its turn once, before it measures."""
    monkeypatch.setattr(fallback_models, "PARTS", 1)
    monkeypatch.setattr(fallback_worker, "PARTS", 1)
    monkeypatch.setattr(fallback_worker, "ZOO", tiny_zoo.ZOO)
    monkeypatch.setattr(measured_cost, "_MOST_RATIO", most_ratio)
    evidence = Evidence()
    results = fallback.Results(evidence)
    turns: list[str] = []
    with torch.no_grad():
        for subject, way in ways.items():
            chosen = argparse.Namespace(subject=subject, way=way, wrong="", device="cpu", rounds=1)
            turn = Turn(partial(turns.append, subject))
            results.take(Job(subject, ()), fallback_worker.study(chosen, turn))
    assert turns == list(ways)
    return evidence


ZOO_WAYS = {"zoo.eigenvalues": PARTS, "zoo.branches": COMPILE}


def test_fallback_is_measured_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures are there, with answers that were compared; the times themselves say nothing here."""
    evidence = fallback_results(monkeypatch, math.inf, ZOO_WAYS | dict.fromkeys((BOUNDARY, *OWN), ""))
    figures, samples = evidence.figures, evidence.samples
    assert {"boundary_us", "fallback.chain.parts.host_us", "fallback.refused"} <= set(figures)
    measured = [name for name in figures if name.endswith("ratio_to_eager") and name.startswith("fallback.")]
    assert (len(measured), figures["fallback.refused"]) == (5, 0)
    assert samples["ways"]["branches"] == COMPILE
    assert "a branch or a shape that depends on a tensor's values" in samples["not_in_parts"]["branches"]
    assert figures["worst_ratio_to_eager_of_other_ways"] == figures["fallback.branches.ratio_to_eager"]
    assert {"fallback.branches.engine_share", "fallback.eigenvalues.engine_share"} <= set(figures)


def test_model_that_is_slower_in_every_way_is_refused_with_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loses to eager is no figure of the benchmark, in parts or by torch.compile; it stands among the refused."""
    evidence = fallback_results(monkeypatch, 0.0, {**ZOO_WAYS, "backbone": ""})
    figures, refused = evidence.figures, evidence.samples["refused"]
    assert sorted(refused) == ["backbone", "branches", "eigenvalues"]
    assert figures == {"fallback.refused": 3}
    assert all("µs a call, where PyTorch takes" in reason for reason in refused.values())


def test_fallback_says_which_models_it_could_not_time() -> None:
    """A job that fails costs no other its figures; how many are missing is a figure itself."""
    evidence = Evidence()
    results = fallback.Results(evidence)
    results.take(Job("zoo.a", ()), {"figures": {"fallback.a.ratio_to_eager": 0.5}, "ways": {"a": FASTER}})
    results.take_failures({"boundary": "ended with 1 before it was ready\nTraceback ...\nAssertionError: off"})
    assert evidence.figures["worst_ratio_to_eager"] == 0.5
    assert evidence.figures["fallback.failed"] == 1
    assert evidence.samples["failed"] == {"boundary": "ended with 1 before it was ready"}


def test_page_on_fallback_says_what_the_evidence_says(repository: Path, tmp_path: Path) -> None:
    """The figures of docs/fallback.md are those of the committed JSON; what has none is named with the reason."""
    results = repository / "benchmarks" / "results"
    page = (repository / "docs" / "fallback.md").read_text(encoding="utf-8")
    assert table.between(page) == fallback_table.generate(results)
    assert fallback_table.generate(tmp_path) == ""
    data = json.loads((results / "fallback.json").read_text())
    data["figures"] |= {"fallback.fcos.ratio_to_eager": 0.456, "fallback.fcos.engine_share": 0.789}
    data["samples"] |= {
        "ways": {"fcos": FASTER},
        "refused": {"backbone": "model in parts: got 12 µs a call, where PyTorch takes 9 µs; expected at most 3% more"},
        "failed": {"zoo.retinanet": "ended with 1 before it was ready"},
    }
    (tmp_path / "fallback.json").write_text(json.dumps(data))
    lines = fallback_table.generate(tmp_path).splitlines()
    assert lines[-4:] == [
        '| fcos | `fallback="faster"` | 0.46 | 79 % |',
        "",
        "- backbone is refused: model in parts: got 12 µs a call, where PyTorch takes 9 µs.",
        "- zoo.retinanet was not timed: ended with 1 before it was ready.",
    ]
    del data["figures"]["boundary_custom_us"]
    (tmp_path / "fallback.json").write_text(json.dumps(data))
    with pytest.raises(table.TableError, match=r"fallback\.json: 'boundary_custom_us' is missing"):
        fallback_table.generate(tmp_path)


def test_wrong_features_before_a_factorisation_are_noticed() -> None:
    """The model with a factorisation answers the same under rounding, and differs where an engine is a little off."""
    model, x = own_model("backbone", torch.device("cpu"))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(model(x * (1 + 1e-6)), expected, rtol=1e-4, atol=1e-5)
        off = model(x * 1.01)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(off, expected, rtol=1e-4, atol=1e-5)


def test_fallback_times_what_second_tries_answered() -> None:
    """The longest try begins first; what no way answered, or no second try was for, is left out."""

    def tried(outcome: str, *seconds: float, whole: str = "refused") -> dict[str, Any]:
        fallback = {"way": PARTS, "outcome": outcome, "seconds": dict(enumerate(seconds))}
        said = {PARTS: f"off in parts by {seconds}\nand a table"} if len(seconds) == 3 else {}
        return {"outcome": whole, "message": "off\nby a table", "fallback": {**fallback, "refused": said}}

    rows = {"a": tried("passed", 1.0, 2.0), "b": tried("wrong", 9.0), "c": {}, "d": tried("passed", 4.0, whole="wrong")}
    rows["e"] = tried("passed", 1.0, 1.0, 3.0)
    found = fallback.second_tries({"samples": {"models": rows}})
    last = ("a", SecondTry(PARTS))
    assert list(found.items()) == [
        ("e", SecondTry(PARTS, "off in parts by (1.0, 1.0, 3.0)")),
        ("d", SecondTry(PARTS, "off")),
        last,
    ]


def test_trust_says_which_models_there_was_no_time_for(script_runs: Mapping[str, ScriptRun]) -> None:
    """A run whose time is over leaves no evidence, but what it had and what is missing."""
    run = script_runs["trust without time"]
    assert run.ended.code != 0
    assert run.files == ["trust.failed.json"]
    data = json.loads((run.folder / "trust.failed.json").read_text())
    assert data["figures"]["trust.models_not_deployed"] == 1
    assert data["figures"]["trust.false_passes"] == 0
    assert "deploy mlp: not begun: the 0 s of --seconds are over" in data["samples"]["failed"]


def test_ordinary_models_are_many_and_each_has_a_batch() -> None:
    """The study has at least 62 models, and every input of each begins with the batch."""
    assert len(ORDINARY) >= 62
    for entry in ORDINARY.values():
        assert {leaf.shape[0] for leaf in entry.inputs().values()} == {SAMPLES}
