"""The zoo: its list is whole, its entries fit their axes, and its sweep tells apart what passes and what does not."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import zoo_sweep, zoo_table
from benchmarks.evidence import Evidence, complaints
from benchmarks.zoo_processes import ZooProcesses
from tests.support import tiny_zoo
from tests.zoo.entry import ZooEntry
from tests.zoo.models import EVERY, LISTS, RELATIVES, ZOO

TINY = "tests.support.tiny_zoo"
SHARED = ("benchmarks.zoo_worker", "torch.onnx", "onnxscript", "torch._dynamo")  # modules of the processes of a sweep


def test_zoo_has_many_families_and_each_name_once() -> None:
    """At least 120 architectures, 45 of them timm's, and no list hides an entry of another."""
    families = Counter(entry.family for entry in ZOO.values())
    assert len(EVERY) == sum(map(len, LISTS))
    assert len(ZOO) == len(EVERY) - len(RELATIVES) >= 120
    assert families["timm"] >= 45
    assert {f"transformers {kind}" for kind in ("encoder", "decoder", "encoder-decoder", "state space")} < set(families)
    assert {f"transformers {kind}" for kind in ("vision", "detection", "audio", "multimodal")} < set(families)
    assert {"torchvision", "transformers time series", "own vision", "own sequences"} < set(families)


def test_inputs_have_the_sizes_of_the_axes() -> None:
    """At every size to try, each dynamic dimension of the inputs is that size, and the others stay as they are."""
    assert [name for name, entry in EVERY.items() if not _fits(entry)] == []


def _fits(entry: ZooEntry) -> bool:
    fixed_shapes: list[dict[str, list[int]]] = []
    for which in ("min", "opt", "max", "between"):
        sizes = entry.sizes(which)
        sample = entry.sample(sizes)
        axes = [(sample[name].shape[dim], axis) for name, by_dim in entry.axes.items() for dim, axis in by_dim.items()]
        if any(size != sizes[axis.name] or size % axis.multiple_of for size, axis in axes):
            return False
        fixed_shapes.append(
            {name: _fixed_sizes(value.shape, entry.axes.get(name, {})) for name, value in sample.items()}
        )
    return fixed_shapes.count(fixed_shapes[0]) == len(fixed_shapes)


def _fixed_sizes(shape: torch.Size, axes: Mapping[int, Any]) -> list[int]:
    return [size for dim, size in enumerate(shape) if dim not in axes]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The evidence of a sweep over the tiny zoo."""
    path = tmp_path_factory.mktemp("zoo") / "zoo_cpu.json"
    chosen = argparse.Namespace(history=[path], workers=2, backend="cpu", limit=300.0, models=TINY, start="forkserver")
    entries = {name: entry for name, entry in tiny_zoo.ZOO.items() if name != "never_ends"}
    zoo_sweep.sweep(entries, Evidence(), path, chosen, SHARED)
    return json.loads(path.read_text())


def test_sweep_records_what_came_of_each_model(swept: dict[str, Any]) -> None:
    """A model that becomes an engine passes every phase; the others have their error, and all count."""
    rows = swept["samples"]["models"]
    assert not list(complaints(swept))
    assert rows["linear"]["outcome"] == "passed"
    assert {"make", "deploy", "deploy.export", "between", "build"} <= set(rows["linear"]["seconds"])
    assert rows["linear"]["axes"] == {"batch": [1, 4, 1]}
    assert (rows["dies"]["outcome"], rows["dies"]["error"], rows["dies"]["phase"]) == ("crashed", "exit 7", "make")
    assert (rows["branches"]["outcome"], rows["branches"]["error"]) == ("refused", "ExportError")
    assert rows["branches"]["phase"] == "deploy"
    assert "(at tests/support/tiny_zoo.py:" in rows["branches"]["message"]
    assert (swept["figures"]["zoo.models"], swept["figures"]["zoo.pass_share"]) == (3, 0.3333)
    assert swept["samples"]["waiting"] == []


def test_sweep_that_is_cut_has_written_what_it_found(tmp_path: Path) -> None:
    """Each row is on disk when it is known, beside the names that are still waiting."""
    path = tmp_path / "zoo_cpu.json"
    run = zoo_sweep.Sweep(Evidence(), path, ["first", "second"])
    run.record("first", {"outcome": "passed", "seconds": {}}, "plain")
    written = json.loads(path.read_text())
    assert written["samples"]["waiting"] == ["second"]
    assert (written["figures"]["zoo.models"], written["figures"]["zoo.waiting"]) == (1, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["zoo_cpu.json"]


def test_model_that_takes_too_long_is_ended() -> None:
    """It becomes a row of its own, and its process is gone."""
    before = multiprocessing.active_children()
    row = ZooProcesses("forkserver", SHARED).ask("never_ends", "cpu", TINY, cores="", limit_s=0.5)
    assert (row["outcome"], row["message"]) == ("timeout", "no answer in 0.5 s")
    assert multiprocessing.active_children() == before


def test_absent_model_counts_neither_way() -> None:
    """What a version of a library lacks is neither passed nor failed; a crash counts as untyped."""
    outcomes = ("passed", "passed", "absent", "refused", "crashed", "timeout", "wrong", "untyped")
    rows = {str(i): {"outcome": outcome} for i, outcome in enumerate(outcomes)}
    figures = zoo_sweep.figures_of(rows, waiting=3)
    assert figures == {
        "zoo.models": 7,
        "zoo.passed": 2,
        "zoo.pass_share": 2 / 7,
        "zoo.refused": 1,
        "zoo.wrong": 1,
        "zoo.untyped": 2,
        "zoo.timeouts": 1,
        "zoo.absent": 1,
        "zoo.waiting": 3,
    }


def test_longest_models_come_first_after_unknown_ones() -> None:
    """A run ends sooner when what takes long does not start last."""
    entries = dict.fromkeys(("short", "long", "unknown"), tiny_zoo.ZOO["linear"])
    assert zoo_sweep.in_order(entries, {"short": 1.0, "long": 9.0}) == ["unknown", "long", "short"]


def test_seconds_come_from_the_last_run_that_a_model_passed(tmp_path: Path) -> None:
    """Each phase counts once; a model that was refused early keeps the seconds of a run that passed it."""
    runs = {
        "first": {
            "both": ("passed", {"make": 1.0, "deploy": 5.0, "deploy.export": 3.0}),
            "one": ("passed", {"make": 2.0}),
        },
        "last": {"both": ("refused", {"make": 0.5}), "one": ("passed", {"make": 4.0})},
    }
    for run, rows in runs.items():
        models = {name: {"outcome": outcome, "seconds": seconds} for name, (outcome, seconds) in rows.items()}
        (tmp_path / run).write_text(json.dumps({"samples": {"models": models}}))
    histories = [tmp_path / run for run in ("first", "last", "missing")]
    assert zoo_sweep.seconds_of(histories) == {"both": 6.0, "one": 4.0}


# The table in the docs


def evidence_of(**outcomes: str) -> dict[str, Any]:
    """The content of an evidence file in which each of these models has its outcome."""
    rows = {
        model: {
            "family": "plain",
            "outcome": outcome,
            "axes": {"batch": [1, 4, 1], "height": [32, 64, 8]},
            "message": "" if outcome == "passed" else "axis 'n': got a|loop; expected none; write it otherwise",
        }
        for model, outcome in outcomes.items()
    }
    return {
        "versions": {"torch": "2.11.0", "tensorrt_rtx": "1.6.1"},
        "figures": zoo_sweep.figures_of(rows),
        "samples": {"models": rows},
    }


def test_table_has_every_model_with_its_reason() -> None:
    """A column for each backend; what one of them did not try is told apart from what failed."""
    found = {"zoo_cpu": evidence_of(a="passed", b="refused"), "zoo_gpu": evidence_of(a="passed")}
    text = zoo_table.generate(found)
    assert "**CPU** (torch 2.11.0, tensorrt_rtx 1.6.1): " in text
    assert "1 of 2 pass, 50.0%." in text
    assert text.endswith(
        "\n## plain\n"
        "\n| model | axes | CPU | GPU | reason |\n|---|---|---|---|---|\n"
        "| `a` | batch 1..4, height 32..64 by 8 | passed | passed |  |\n"
        "| `b` | batch 1..4, height 32..64 by 8 | refused | – | a\\|loop |\n"
    )


def test_document_says_what_the_evidence_says(repository: Path) -> None:
    """docs/models.md is the one that the committed JSON gives; without JSON there is none."""
    found = zoo_table.read(repository / "benchmarks" / "results")
    assert zoo_table.DOCUMENT.exists() == bool(found)
    assert not found or zoo_table.DOCUMENT.read_text(encoding="utf-8") == zoo_table.generate(found)
